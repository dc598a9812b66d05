"""`MemoryState` and `NeuralMemoryState`: the state of a memory and of its layer, as plain values; and trees of tensors.

A state can be saved, split, copied and sent away; no call changes one in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import get_annotations
from typing import Any, ClassVar, Self, get_args, get_type_hints

import torch
from torch import Tensor, nn

from titanslab.memory.network import MemoryParams
from titanslab.memory.transforms import transformed

OTHER = "; is it the state of another layer?"


def tree_map(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A tree of the same structure with `fn` applied to each tensor; counters keep their dtype, see `_applied`."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([tree_map(fn, part) for part in tree])
    if kind is dict:
        return {name: tree_map(fn, part) for name, part in tree.items()}
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return fn(tree) if tree.is_floating_point() else _applied(fn, tree)
    return kind(**{name: tree_map(fn, getattr(tree, name)) for name in tree.parts})


def _applied(fn: Callable[[Tensor], Tensor], counter: Tensor) -> Tensor:
    """`fn(counter)`; where `fn` is a cast, only its device counts: float16 does not hold a position of 2,049."""
    new = fn(counter)
    return new if new.dtype == counter.dtype else counter.to(new.device)


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


def own_storage(tensor: Tensor) -> Tensor:
    """The tensor, copied if it is a view of a parameter or of a much larger tensor, which it would keep alive."""
    if transformed():  # a tensor of torch.func has no storage
        return not_the_layers(tensor)
    if tensor.untyped_storage().nbytes() > 4 * tensor.numel() * tensor.element_size():
        return tensor.clone()
    return not_the_layers(tensor)


def not_the_layers(tensor: Tensor) -> Tensor:
    """The tensor, copied if it is a parameter or a view of one: who edits a state must not edit the learned M_0."""
    return tensor.clone() if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter) else tensor


class TensorTree:
    """Base of the states: dataclasses of tensors and further states, in which the batch is the first dimension.

    `parts` names the fields that belong to the value; a field with `compare=False` does not.
    """

    parts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.parts = tuple(n for n in get_annotations(cls) if getattr(getattr(cls, n, None), "compare", True))

    def __repr__(self) -> str:
        tensors = self.tensors()
        rows = {t.shape[0] for t in tensors.values()}
        kinds = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()})
        facts = [f"batch_size={rows.pop()}"] if len(rows) == 1 else []
        facts += [*kinds, *sorted({str(t.device) for t in tensors.values()}), f"{self.nbytes() / 1024:,.1f} KiB"]
        return f"{type(self).__name__}({', '.join(facts)})"

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same value with `fn` applied to every tensor."""
        return tree_map(fn, self)

    def detach(self) -> Self:
        """The same value without its graph."""
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        """The same value in memory of its own."""
        return self.map(Tensor.clone)

    def to(self, *target: Any) -> Self:
        """The same value on a device or in a dtype, as `Tensor.to` takes them; counters keep their dtype."""
        return self.map(lambda t: t.to(*target))

    def expand(self, batch_size: int) -> Self:
        """A state of one row, seen as `batch_size` equal rows; nothing is copied."""
        return self.map(lambda t: t.expand(batch_size, *t.shape[1:]))

    def index_select(self, rows: Tensor) -> Self:
        """The given rows of the batch, in that order."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def nbytes(self) -> int:
        """Bytes that this state takes when it is stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

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
        if unknown := [name for name in parts if name not in cls.parts]:
            raise TypeError(f"a {cls.__name__} has the parts {', '.join(cls.parts)}, got a tensor of {unknown[0]!r}")
        hints = get_type_hints(cls)
        return cls(**{name: _restored(hints.get(name), part) for name, part in parts.items()})


def _restored(hint: Any, part: dict[str, Tensor]) -> Any:
    """A field of type `hint` from the tensors of its part."""
    if "" in part:
        return part[""]
    if all(name.isdigit() for name in part):
        return tuple(part[str(i)] for i in range(len(part)))
    trees = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, TensorTree)]
    return trees[0].from_tensors(part) if trees else part


@dataclass(frozen=True, repr=False)
class MemoryState(TensorTree):
    """State of the memories of one layer after some tokens.

    Args:
        weights: M_t, one `[B, H, d_in, d_out]` per layer.
        momentum: S_t, same shapes.
        chunk_weights: weights at the start of the running chunk, same shapes; not read where `offset` is 0.
        offset: int64 `[B]`, tokens of the running chunk already written, per row.
        joined: set by the backends, None elsewhere: tensors of which `weights` and `momentum` are views, then these.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    chunk_weights: tuple[Tensor, ...]
    offset: Tensor
    joined: tuple[tuple[Tensor, ...], ...] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def initial(cls, params: MemoryParams, batch_size: int) -> "MemoryState":
        """M_0 for every row, no momentum, at a chunk boundary."""
        weights = tuple(w.unsqueeze(0).expand(batch_size, *w.shape) for w in params.weights)
        momentum = tuple(torch.zeros_like(w) for w in weights)
        offset = torch.zeros(batch_size, dtype=torch.int64, device=weights[0].device)
        return cls(weights, momentum, weights, offset)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.offset.shape[0]

    @property
    def stacked(self) -> list[Tensor] | None:
        """Weights above momentum, `[B * H, 2 d_in, d_out]` per layer, if they are views of one tensor, else None.

        A caller that gets them need not copy weights and momentum into one tensor.
        """
        if self.joined is None or self.joined[1] is not self.weights or self.joined[2] is not self.momentum:
            return None  # `dataclasses.replace` keeps `joined` although it changes the weights
        return list(self.joined[0])

    def in_dtype(self, dtype: torch.dtype) -> "MemoryState":
        """The state in another dtype, or the state itself if it already has that dtype."""
        parts = (*self.weights, *self.momentum, *self.chunk_weights)
        return self if all(t.dtype == dtype for t in parts) else self.map(lambda t: t.to(dtype))

    def check(
        self,
        name: str,
        q: Tensor,
        widths: list[tuple[int, int]],
        batches: tuple[int, ...],
        chunk_size: int | None = None,
    ) -> None:
        """Raise a ValueError if this state, the argument `name`, does not fit q `[B,T,H,D]` and the chunk size."""
        if self.batch_size not in batches:
            raise ValueError(f"{name} holds {self.batch_size} rows, q has a batch of {q.shape[0]}")
        check_shape(f"{name}.offset", self.offset, (self.batch_size,), q)
        if self.offset.dtype != torch.int64:
            raise ValueError(f"{name}.offset must be int64, got {self.offset.dtype}")
        self._check_offset(name, chunk_size)
        for part in ("weights", "momentum", "chunk_weights"):
            tensors = getattr(self, part)
            if not isinstance(tensors, tuple | list) or len(tensors) != len(widths):
                got = len(tensors) if isinstance(tensors, tuple | list) else type(tensors).__name__
                raise ValueError(f"{name}.{part} must hold {len(widths)} tensors, one per layer, got {got}{OTHER}")
            for layer, (tensor, width) in enumerate(zip(tensors, widths, strict=True)):
                shape = (self.batch_size, q.shape[2], *width)
                check_shape(f"{name}.{part}[{layer}]", tensor, shape, q, OTHER)
                if not tensor.is_floating_point():
                    raise ValueError(f"{name}.{part}[{layer}] must have a floating dtype, got {tensor.dtype}")

    def _check_offset(self, name: str, chunk_size: int | None) -> None:
        """On a CPU, where a look does not wait for a device: no running chunk is longer than the chunk size."""
        offset = self.offset
        unseen = offset.device.type != "cpu" or torch.compiler.is_compiling() or transformed()
        if chunk_size is None or unseen or not offset.numel():
            return
        least, most = (int(end) for end in offset.aminmax())
        if least < 0 or most >= chunk_size:
            raise ValueError(
                f"{name}.offset must be from 0 to {chunk_size - 1}, the tokens of a running chunk of chunk_size="
                f"{chunk_size}, got {least}..{most}; is it the state of a layer with another chunk_size?"
            )

    def at_boundary(self) -> "MemoryState":
        """The same memory; its current weights become the start of a new chunk."""
        return MemoryState(self.weights, self.momentum, self.weights, torch.zeros_like(self.offset))


@dataclass(frozen=True, repr=False)
class NeuralMemoryState(TensorTree):
    """State of a `NeuralMemory` layer between calls: its memories and the last inputs of its convolutions.

    Args:
        memory: the fast weights.
        conv: `[B, conv_size-1, H*D]` for "q", "k", "v" and, for `retrieve`, "read".
    """

    memory: MemoryState
    conv: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.memory.batch_size

    def as_start(self) -> "NeuralMemoryState":
        """The state with which a document starts: at a chunk boundary, and reads continue the convolution of q."""
        return NeuralMemoryState(self.memory.at_boundary(), {**self.conv, "read": self.conv["q"]})


def with_read(conv: dict[str, Tensor], source: NeuralMemoryState | None) -> dict[str, Tensor]:
    """The tails `conv` of q, k and v after a write, with the tail "read" of `source`, which a write does not change."""
    read = conv["q"].new_zeros(conv["q"].shape) if source is None else source.conv["read"]
    return {**conv, "read": read.expand_as(conv["q"])}


def where_rows(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where `rows [B]` is true, else of `b`; `a` and `b` are `[B or 1, ...]`."""
    return torch.where(rows.view(-1, *[1] * (b.dim() - 1)), a, b)


def check_shape(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor, hint: str = "") -> None:
    """Raise a ValueError, with a `hint`, unless `x` has that shape and is on the device of `like`, which is q."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}{hint}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, q is on {like.device}; move one of them")
