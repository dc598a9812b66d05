"""`TitansConfig`: every choice a Titans model is built from, checked when it is made."""

import difflib
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

VARIANTS = ("lmm", "mal", "mag", "mac", "attention")
GATES = ("mix", "sigmoid", "silu")
BACKENDS = ("auto", "reference", "recurrent", "chunked", "triton")

# Camera-ready table 5 (blocks, width, heads); 400m has no row there, see `TitansConfig.preset`.
PAPER: dict[str, Any] = {
    "vocab_size": 32000,
    "chunk_size": 16,
    "segment_len": 512,
    "window_size": 2048,
    "num_persistent_tokens": 128,
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 260,
        "hidden_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "chunk_size": 16,
        "segment_len": 128,
        "window_size": 64,
        "num_persistent_tokens": 8,
    },
    "170m": PAPER | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 16},
    "340m": PAPER | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "400m": PAPER | {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16},
    "760m": PAPER | {"hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1.3b": PAPER | {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8},
}


def nearest(name: object, allowed: tuple[str, ...]) -> str:
    """`", did you mean 'x'?"`, or nothing where no allowed name is near."""
    found = difflib.get_close_matches(str(name).lower(), allowed, n=1, cutoff=0.4)
    return f"; did you mean {found[0]!r}?" if found else ""


class TitansConfig(PreTrainedConfig):
    """Configuration of a Titans model; an impossible value raises a ValueError that names the field.

    Args:
        variant: "lmm", "mal", "mag", "mac", or the baseline "attention": the same trunk with attention alone.
        vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: as in Llama;
            `intermediate_size` None = 8/3 of `hidden_size`, up to the next multiple of 64.
        num_memory_heads: memories side by side in a block; None = `num_attention_heads`.
        memory_grad_clip: largest inner gradient per token, in units of sqrt(head width); None = off.
        memory_depth, memory_expansion, memory_residual, memory_norm: of each memory, see
            `titanslab.memory.MemoryNetwork`.
        memory_gates_per_layer: separate theta, eta, alpha for each layer of a memory.
        memory_momentum, memory_forgetting: False = the paper's ablations without eta, without alpha.
        memory_half_lives: shortest and longest initial half-life of the heads, in tokens.
        memory_theta_bias: bias of the write gate at the start: sigmoid of it, in units of the stability limit.
        memory_gate_keys: the write gate sees the token's key too, so with it the tokens just before. OURS.
        memory_write_cost: what training adds to the loss for a mean write gate of 1, so that a gate closes on what
            need not be kept; 0 = nothing. OURS.
        memory_write_floor: None = each write costs its gate; a small number = it costs the gate's logarithm from there
            on, so that gates of a thousandth close too (`mean_write`). OURS.
        conv_size: taps of the short convolution after the memory's q, k, v; 1 = none.
        attention_conv_size: variant "attention" only: taps of such a convolution after attention's q, k, v, started
            as the memory's is; 1 = none. OURS.
        chunk_size: tokens whose inner gradients are taken at the same weights.
        segment_len: tokens of a MAC segment. Not read by the other variants.
        window_size: tokens an attention position sees, itself included, in "mal", "mag" and "attention";
            None = all ("attention" only). Not read by "lmm" and "mac".
        num_persistent_tokens: learned vectors of each block, 0 = none.
        gate_type: how "mag" and "mac" join attention and memory, see `titanslab.layers.MemoryGate`.
        memory_backend: "auto", or a backend of `titanslab.memory.neural_memory` by name.
        initializer_range: standard deviation of linear layers at the start; embeddings take `hidden_size ** -0.5`.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; other types raise.
        fused_loss: in training with labels, compute the loss in chunks of tokens and return no logits.
    """

    model_type: ClassVar[str] = "titans"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    variant: str = "mac"
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_memory_heads: int | None = None
    memory_depth: int = 2
    memory_expansion: int = 4
    memory_residual: bool = True
    memory_norm: bool = True
    memory_grad_clip: float | None = 1.0
    memory_gates_per_layer: bool = True
    memory_momentum: bool = True
    memory_forgetting: bool = True
    memory_half_lives: list[float] | tuple[float, ...] | None = None
    memory_theta_bias: float = 2.0
    memory_gate_keys: bool = False
    memory_write_cost: float = 0.0
    memory_write_floor: float | None = None
    conv_size: int = 4
    attention_conv_size: int = 1
    chunk_size: int = 16
    segment_len: int = 512
    window_size: int | None = 2048
    num_persistent_tokens: int = 128
    gate_type: str = "mix"
    memory_backend: str = "auto"
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    fused_loss: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._reject_unknown(kwargs)
        for name in ("hidden_size", "num_attention_heads"):
            self._check_integer(name, getattr(self, name), 1)
        if self.intermediate_size is None:
            self.intermediate_size = -(-8 * self.hidden_size // 3 // 64) * 64
        if self.num_memory_heads is None:
            self.num_memory_heads = self.num_attention_heads
        if self.memory_half_lives is not None:
            self.memory_half_lives = list(self.memory_half_lives)
        self.rope_parameters = dict(self.rope_parameters or {})
        if self.rope_parameters.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters: rope_type must be 'default', got {self.rope_parameters['rope_type']!r}")
        super().__post_init__(**kwargs)
        self.check()
        from titanslab.models.register import register_models

        register_models()

    @classmethod
    def preset(cls, name: str, variant: str = "mac", **overrides: Any) -> "TitansConfig":
        """A model of the paper's sizes, or `tiny` for a laptop.

        Shapes of 170m, 340m, 760m and 1.3b are the camera-ready's. It has no row for 400m (OURS: 340m with 28
        blocks, which keeps heads of 64). A size is a name; `titanslab.models.cost` counts.

        Raises:
            ValueError: an unknown preset, variant or field, with the nearest known name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}{nearest(name, tuple(PRESETS))}")
        known = tuple(field.name for field in fields(cls))
        for field in overrides:
            if field not in known:
                raise ValueError(f"TitansConfig has no field {field!r}{nearest(field, known)}")
        return cls(**{**PRESETS[name], "variant": variant, **overrides})

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def memory_head_dim(self) -> int:
        """Width of a memory head."""
        return self.hidden_size // (self.num_memory_heads or self.num_attention_heads)

    @property
    def rotary_base(self) -> float:
        """Base of the rotary frequencies."""
        return float((self.rope_parameters or {})["rope_theta"])

    def check(self) -> None:
        """Raise a ValueError that names the first field whose value cannot be."""
        for name, allowed in (("variant", VARIANTS), ("gate_type", GATES), ("memory_backend", BACKENDS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}{nearest(value, allowed)}")
        at_least_one = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_memory_heads "
            "memory_depth memory_expansion conv_size attention_conv_size chunk_size segment_len"
        )
        for name in at_least_one.split():
            self._check_integer(name, getattr(self, name), 1)
        self._check_integer("num_persistent_tokens", self.num_persistent_tokens, 0)
        if self.window_size is not None:
            self._check_integer("window_size", self.window_size, 1)
        elif self.variant in ("mal", "mag"):
            raise ValueError(
                f"window_size must be an integer for variant {self.variant!r}, got None (all tokens); "
                "only variant 'attention' may see all of them"
            )
        if self.attention_conv_size > 1 and self.variant != "attention":
            raise ValueError(
                f"attention_conv_size must be 1 for variant {self.variant!r}, got {self.attention_conv_size}; "
                "only attention alone has such a convolution"
            )
        for name in ("num_attention_heads", "num_memory_heads"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(
                    f"hidden_size must be a multiple of {name}, got {self.hidden_size} and {getattr(self, name)}"
                )
        if self.variant != "lmm" and self.head_dim % 2:
            raise ValueError(
                "hidden_size / num_attention_heads must be even for rotary positions, "
                f"got {self.hidden_size} / {self.num_attention_heads} = {self.head_dim}"
            )
        flags = (
            "memory_residual memory_norm memory_gates_per_layer memory_momentum memory_forgetting memory_gate_keys "
            "tie_word_embeddings fused_loss use_cache"
        )
        for name in flags.split():
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("rms_norm_eps", "initializer_range"):
            self._check_positive(name, getattr(self, name))
        if self.memory_grad_clip is not None:
            self._check_positive("memory_grad_clip", self.memory_grad_clip)
        self._check_half_lives()
        bias = self.memory_theta_bias
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not abs(bias) < 100:
            raise ValueError(f"memory_theta_bias must be a number between -100 and 100, got {bias!r}")
        cost = self.memory_write_cost
        if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < float("inf"):
            raise ValueError(f"memory_write_cost must be a number of at least 0, got {cost!r}")
        floor = self.memory_write_floor
        if floor is not None and not (isinstance(floor, int | float) and not isinstance(floor, bool) and 0 < floor < 1):
            raise ValueError(
                f"memory_write_floor must be None or a number between 0 and 1, such as 1e-4, got {floor!r}"
            )
        self._check_positive("rope_parameters: rope_theta", (self.rope_parameters or {}).get("rope_theta"))
        for name in ("pad_token_id", "bos_token_id"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 0 <= value < self.vocab_size):
                raise ValueError(
                    f"{name} must be None or within the vocabulary 0..{self.vocab_size - 1}, got {value!r}"
                )

    def _check_half_lives(self) -> None:
        value = self.memory_half_lives
        if value is None:
            return
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in value)
        if len(value) != 2 or not numbers or value[0] > value[1]:
            raise ValueError(f"memory_half_lives must be [shortest, longest] in tokens, both above 0, got {value!r}")

    @staticmethod
    def _check_integer(name: str, value: object, least: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")

    @staticmethod
    def _check_positive(name: str, value: object) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {value!r}")

    def _reject_unknown(self, kwargs: dict[str, Any]) -> None:
        """A misspelt field must not become an attribute nobody reads."""
        known = tuple(field.name for field in fields(self))
        for name in set(kwargs) - {"model_type", *FOREIGN}:
            guess = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            if guess and not name.startswith("_"):
                raise ValueError(f"unknown field {name!r} in TitansConfig; did you mean {guess[0]!r}?")


FOREIGN = (
    "torch_dtype",
    "num_labels",
    "rope_theta",
    "rope_scaling",
    "attn_implementation",
    "output_attentions",
)
