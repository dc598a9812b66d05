"""Trees of tensors: `TensorTree`s, tuples, lists and dicts that hold tensors, each other, or None."""

from collections.abc import Callable
from inspect import get_annotations
from typing import Any, ClassVar, Self, get_args, get_type_hints

from torch import Tensor


def tree_map(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A tree of the same structure with `fn` applied to each tensor."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([tree_map(fn, part) for part in tree])
    if kind is dict:
        return {name: tree_map(fn, part) for name, part in tree.items()}
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return fn(tree)
    return kind(**{name: tree_map(fn, getattr(tree, name)) for name in tree.parts})


def named_tensors(tree: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of a tree under its path, such as "memory.weights.0"."""
    if isinstance(tree, Tensor):
        return {name: tree}
    if tree is None:
        return {}
    if isinstance(tree, tuple | list):
        parts: dict[Any, Any] = dict(enumerate(tree))
    else:
        parts = tree if isinstance(tree, dict) else {part: getattr(tree, part) for part in tree.parts}
    found: dict[str, Tensor] = {}
    for part, child in parts.items():
        found |= named_tensors(child, f"{name}.{part}" if name else str(part))
    return found


def tree_nbytes(tree: Any) -> int:
    """Bytes that the tensors of a tree take when they are stored."""
    return sum(t.numel() * t.element_size() for t in named_tensors(tree).values())


def own_storage(tensor: Tensor) -> Tensor:
    """The tensor, copied if it is a view of less than a quarter of a larger one, which the view would keep alive."""
    if tensor.untyped_storage().nbytes() > 4 * tensor.numel() * tensor.element_size():
        return tensor.clone()
    return tensor


class TensorTree:
    """Base of the state dataclasses, in which every tensor has the batch as its first dimension.

    `parts` are the names of the fields without those with `compare=False`, which are no part of the value.
    """

    parts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.parts = tuple(n for n in get_annotations(cls) if getattr(getattr(cls, n, None), "compare", True))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same value with `fn` applied to every tensor."""
        return tree_map(fn, self)

    def detach(self) -> Self:
        """The same value without its graph."""
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        """The same value in memory of its own."""
        return self.map(Tensor.clone)

    def expand(self, batch_size: int) -> Self:
        """A state of one row, seen as `batch_size` equal rows; nothing is copied."""
        return self.map(lambda t: t.expand(batch_size, *t.shape[1:]))

    def index_select(self, rows: Tensor) -> Self:
        """The given rows of the batch, in that order."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, for saving."""
        return named_tensors(self)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """Inverse of `tensors()`; KeyError or TypeError if a tensor is missing or has an unknown name."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            field, _, rest = name.partition(".")
            parts.setdefault(field, {})[rest] = tensor
        hints = get_type_hints(cls)
        return cls(**{name: _restored(hints.get(name), part) for name, part in parts.items()})

    def nbytes(self) -> int:
        """Bytes that this state takes when it is stored."""
        return tree_nbytes(self)


def _restored(hint: Any, part: dict[str, Tensor]) -> Any:
    """A field of type `hint` from the tensors of its part."""
    if "" in part:
        return part[""]
    if all(name.isdigit() for name in part):
        return tuple(part[str(i)] for i in range(len(part)))
    trees = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, TensorTree)]
    return trees[0].from_tensors(part) if trees else part
