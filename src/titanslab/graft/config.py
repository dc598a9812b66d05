"""`GraftConfig`: where the memories of a graft stand, and how far the attention of the base reaches."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from titanslab.memory.config import MemoryConfig, OptionError, check_choice, check_integer, nearest

PLACEMENTS = ("mag", "mal", "mac")
LAYER_WORDS = ("all", "third", "lower", "upper", "none")


@dataclass(frozen=True)
class GraftConfig:
    """Options of a graft.

    Args:
        layers: the decoder layers that get a memory: their numbers from 0, negative ones from the end, or a word:
            "all", "third" (every third layer, from the third one on), "lower" or "upper" (that half of the layers), or
            "none", a window without memories, the control of a graft that is trained. A word chooses among the layers
            with attention.
        window_size: tokens that the base's own attention sees, the current one included; None = attention stays as it
            is.
        num_sink_tokens: first tokens of a row that attention sees too, wherever its window is. They count only with a
            window.
        placement: "mag" adds the memory's output to the attention's output, "mal" adds it to the attention's input,
            "mac" gives it to attention as additional keys and values.
        memory: options of each memory.

    Raises:
        OptionError: an impossible value; a ValueError that names the option.
    """

    layers: tuple[int, ...] | str = "third"
    window_size: int | None = None
    num_sink_tokens: int = 4
    placement: str = "mag"
    memory: MemoryConfig = field(default_factory=lambda: MemoryConfig(num_heads=4, head_dim=64))

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            check_choice("layers", self.layers, LAYER_WORDS)
        else:
            object.__setattr__(self, "layers", _numbers(self.layers))
        if self.window_size is not None:
            check_integer("window_size", self.window_size, 2)
        check_integer("num_sink_tokens", self.num_sink_tokens, 0)
        check_choice("placement", self.placement, PLACEMENTS)
        if not isinstance(self.memory, MemoryConfig):
            raise OptionError("memory", f"must be a MemoryConfig, got {type(self.memory).__name__}")

    def chosen(self, count: int) -> tuple[int, ...]:
        """The numbers of the grafted layers in a base of `count` layers; OptionError for a layer it does not have."""
        if isinstance(self.layers, str):
            ranges = {
                "all": range(count),
                "third": range(min(2, count - 1), count, 3),
                "lower": range((count + 1) // 2),
                "upper": range(count // 2, count),
                "none": range(0),
            }
            return tuple(ranges[self.layers])
        if wrong := [n for n in self.layers if not -count <= n < count]:
            raise OptionError("layers", f"has the number {wrong[0]}, and the base has {count} layers, 0 to {count - 1}")
        chosen = tuple(sorted({n % count for n in self.layers}))
        if len(chosen) < len(self.layers):
            raise OptionError("layers", f"names a layer twice in a base of {count} layers: {list(self.layers)}")
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values; `GraftConfig.from_dict` is the inverse."""
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        return asdict(self) | {"layers": layers, "memory": self.memory.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config of `to_dict`'s values; OptionError for an unknown option."""
        for kind, given in ((cls, values), (MemoryConfig, values.get("memory", {}))):
            allowed = tuple(option.name for option in fields(kind))
            if not isinstance(given, Mapping):
                raise OptionError("memory", f"must hold the options of a memory, got {given!r:.60}")
            if unknown := [name for name in given if name not in allowed]:
                raise OptionError(str(unknown[0]), f"is no option of {kind.__name__}{nearest(unknown[0], allowed)}")
        if "memory" in values:
            values = {**values, "memory": MemoryConfig(**values["memory"])}
        return cls(**values)


def _numbers(layers: Any) -> tuple[int, ...]:
    """The layers as a tuple of whole numbers."""
    numbers = tuple(layers) if isinstance(layers, list | tuple | range | set | frozenset) else ()
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        words = ", ".join(repr(word) for word in LAYER_WORDS)
        raise OptionError("layers", f"must be one of {words} or whole numbers such as (2, 5), got {layers!r:.60}")
    return numbers
