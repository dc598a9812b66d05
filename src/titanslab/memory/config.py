"""`MemoryConfig`: every option of a neural memory, with its default, its check and its meaning."""

import difflib
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

from titanslab.memory.network import MemoryNetwork

BACKENDS = ("reference", "recurrent", "chunked", "triton")
FORGET_TO = ("zero", "start")
# These options decide how a memory starts and which code runs it; its state means the same whatever their values.
NOT_IN_THE_STATE = ("half_lives", "theta_bias", "backend")
MOST = (1 << 31) - 1  # of sizes and counts: torch's kernels index with 32 bits
MOST_LAYERS = 10_000  # of weight matrices of a memory, and of blocks of a model
MOST_TAPS = 4096  # of a short convolution; its code gathers as many copies of its input
HALF_LIVES = 0.1, 1e30  # a shorter or longer half-life has no finite bias of its gate in float32


class OptionError(ValueError):
    """An option has an impossible value: `name` is the option, `problem` the rest of the message."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


@dataclass(frozen=True)
class MemoryConfig:
    """Options of a neural memory: its shape, its update rule and its initial values.

    Args:
        num_heads: number of memories side by side in a layer.
        depth, expansion: weight matrices of a memory, and its hidden width over its head width, see `MemoryNetwork`.
        chunk_size: tokens whose inner gradients share the weights of the chunk's start; part of the function.
        head_dim: width of a head; None = `hidden_size / num_heads`.
        residual, norm: of a memory's network, see `MemoryNetwork`.
        grad_clip: largest inner gradient per token in units of sqrt(head_dim), the length of a normalised output;
            None = off. OURS: the default bounds the write of one token, and at the start it hardly ever binds.
        conv_size: taps of the short convolutions after q, k and v; 1 = none.
        gates_per_layer: separate theta, eta and alpha for each weight matrix of a memory.
        read_before_write: a token reads the memory before its own write, and not right after it. OURS, for ablations.
        momentum, forgetting: False fixes eta or alpha at 0 (the paper's ablations).
        forget_to: "zero", the paper's equation 13, in which forgetting draws the whole memory to 0, its learned start
            M_0 too; or "start", OURS: it draws the memory to M_0, so that only what was written is forgotten.
        half_lives: shortest and longest half-life of the heads at the start of training, in tokens.
        theta_bias: bias of theta's gate at the start: its sigmoid is the write in units of the stability limit. By
            default a write starts near the limit. Where few tokens are worth a write, a gate that starts closed (-3)
            learns sooner to stay closed.
        chunk_coherence: expected cosine between the inputs of a memory's layer for two tokens of a chunk. The gradients
            of a chunk are taken at the same weights and add up, so that the limit of theta is that of one token
            divided by `1 + chunk_coherence * (chunk_size - 1)`. By default all tokens of a chunk may push in one
            direction; 0.19 is the cosine for unrelated keys; 0 = the limit of one token, as in models of before
            this option. OURS.
        gate_keys: the projection of theta's gate reads the token's key too. The key depends on the tokens before it,
            as far as the convolution reaches. OURS.
        backend: "auto", or a backend of `neural_memory` by name.

    Raises:
        OptionError: an impossible value; a ValueError that names the option.
    """

    num_heads: int
    depth: int = 2
    expansion: int = 4
    chunk_size: int = 16
    _: KW_ONLY
    head_dim: int | None = None
    residual: bool = True
    norm: bool = True
    grad_clip: float | None = 1.0
    conv_size: int = 4
    gates_per_layer: bool = True
    read_before_write: bool = False
    momentum: bool = True
    forgetting: bool = True
    forget_to: str = "zero"
    half_lives: tuple[float, float] = (2.0**6, 2.0**14)
    theta_bias: float = 2.0
    chunk_coherence: float = 1.0
    gate_keys: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_heads", "expansion", "chunk_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("depth", self.depth, 1, MOST_LAYERS)
        check_integer("conv_size", self.conv_size, 1, MOST_TAPS)
        if self.head_dim is not None:
            check_integer("head_dim", self.head_dim, 1)
        for name in ("residual", "norm", "gates_per_layer", "momentum", "forgetting", "gate_keys", "read_before_write"):
            check_flag(name, getattr(self, name))
        if self.grad_clip is not None:
            check_positive("grad_clip", self.grad_clip)
        if not is_number(self.theta_bias) or not abs(self.theta_bias) < 100:
            raise OptionError("theta_bias", f"must be a number between -100 and 100, got {self.theta_bias!r}")
        if not is_number(self.chunk_coherence) or not 0 <= self.chunk_coherence <= 1:
            raise OptionError("chunk_coherence", f"must be a number from 0 to 1, got {self.chunk_coherence!r}")
        check_choice("backend", self.backend, ("auto", *BACKENDS))
        check_choice("forget_to", self.forget_to, FORGET_TO)
        lives = self.half_lives
        pair = isinstance(lives, list | tuple) and len(lives) == 2 and all(is_number(v) and v > 0 for v in lives)
        if not pair or not HALF_LIVES[0] <= lives[0] <= lives[1] <= HALF_LIVES[1]:
            low, high = HALF_LIVES
            raise OptionError("half_lives", f"must be [shortest, longest] in tokens, {low} to {high:g}, got {lives!r}")
        object.__setattr__(self, "half_lives", tuple(lives))

    @property
    def gate_layers(self) -> int:
        """Gates of a head: one for each weight matrix, or one for all."""
        return self.depth if self.gates_per_layer else 1

    def width(self, hidden_size: int) -> int:
        """Width of a head in a layer of `hidden_size`; ValueError if the heads do not divide it."""
        if self.head_dim is None and hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, got {hidden_size} and {self.num_heads}; or give head_dim"
            )
        return self.head_dim or hidden_size // self.num_heads

    def network(self, head_dim: int) -> MemoryNetwork:
        """The network of one memory with heads of `head_dim`."""
        limit = self.grad_clip and self.grad_clip * head_dim**0.5
        return MemoryNetwork(self.depth, self.expansion, self.residual, self.norm, limit)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values; `MemoryConfig(**values)` is the inverse."""
        return asdict(self) | {"half_lives": list(self.half_lives)}


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_integer(name: str, value: object, least: int, most: int = MOST) -> None:
    """OptionError unless `value` is an integer of at least `least` and at most `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(name, f"must be an integer of at least {least}, got {value!r}")
    if value > most:
        raise OptionError(name, f"must be an integer of at most {most}, got {value!r}")


def check_positive(name: str, value: Any, most: float = 1e30) -> None:
    """OptionError unless `value` is a number above 0 and at most `most`, by default one that float32 holds."""
    if not is_number(value) or not 0 < value < float("inf"):
        raise OptionError(name, f"must be a positive number, got {value!r}")
    if value > most:
        raise OptionError(name, f"must be a number of at most {most:g}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """OptionError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise OptionError(name, f"must be True or False, got {value!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """OptionError unless `value` is one of `allowed`; it names the nearest of them."""
    if value not in allowed:
        raise OptionError(name, f"must be one of {', '.join(allowed)}; got {value!r}{nearest(value, allowed)}")


def nearest(name: object, allowed: tuple[str, ...]) -> str:
    """`"; did you mean 'x'?"`, or "" if no allowed name is near."""
    found = difflib.get_close_matches(str(name).lower(), allowed, n=1, cutoff=0.4)
    return f"; did you mean {found[0]!r}?" if found else ""
