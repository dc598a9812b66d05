"""`TitansConfig`: every choice a Titans model is built from, checked when it is made."""

import difflib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from titanslab.memory.config import (
    MOST_LAYERS,
    MOST_TAPS,
    MemoryConfig,
    OptionError,
    check_choice,
    check_flag,
    check_integer,
    check_positive,
    is_number,
    nearest,
)

VARIANTS = ("lmm", "mal", "mag", "mac", "attention")
WINDOWED = ("bamba_window", "qwen3_next_window")  # model types of the baselines in `titanslab.models.windowed`
GATES = ("mix", "sigmoid", "silu")
POOLINGS = ("mean", "last")
_SHORT = {"num_heads": "num_memory_heads", "conv_size": "conv_size", "chunk_size": "chunk_size"}
# Options of `MemoryConfig` under the names that keyword arguments, recipes and the header of a cache file give them:
# `memory_depth` is `memory.depth`. A config.json of before `memory` was there has these names too.
MEMORY_OPTIONS = {_SHORT.get(f.name, f"memory_{f.name}"): f.name for f in fields(MemoryConfig)}
# Values of the fields that a file written before they existed does not name, be it a config.json or a cache file.
LATER_FIELDS = {"attention_conv_size": 1, "memory_head_dim": None, "memory_chunk_coherence": 0.0}

# Camera-ready table 5 (blocks, width, heads); 400m has no row there, see `TitansConfig.preset`.
PAPER: dict[str, Any] = {"vocab_size": 32000, "segment_len": 512, "window_size": 2048, "num_persistent_tokens": 128}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 260,
        "hidden_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
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


class TitansConfig(PreTrainedConfig):
    """Configuration of a Titans model; an impossible value raises a ValueError that names the field.

    Args:
        variant: "lmm", "mal", "mag", "mac", or the baseline "attention": the same trunk with attention alone.
        vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, ...: as in Llama; an
            `intermediate_size` of None = 8/3 of `hidden_size`, up to the next multiple of 64.
        memory: options of the memory in each block, as a `titanslab.memory.MemoryConfig` or as a dict of its fields; a
            `num_heads` of None = `num_attention_heads`. Each option also has a name of its own (`MEMORY_OPTIONS`):
            `memory_depth` is `memory.depth`, as a keyword argument, which wins over `memory`, and as an attribute.
        memory_write_cost: cost that training adds to the loss at a mean write gate of 1, so that gates close on
            tokens that need not be kept; 0 = none. OURS.
        memory_write_floor: None = the cost is on the gate itself. A small number = the cost is on the logarithm of
            the gate above that number, so that gates of a thousandth close too (`mean_write`). OURS.
        attention_conv_size: variant "attention" only: taps of short convolutions after attention's q, k and v, which
            start as the memory's do; 1 = none. OURS.
        segment_len: tokens of a MAC segment. The other variants do not read it.
        window_size: tokens that an attention position sees, itself included, in "mal", "mag" and "attention";
            None = all ("attention" only). "lmm" and "mac" do not read it.
        num_persistent_tokens: learned vectors of each block, 0 = none.
        gate_type: how "mag" and "mac" join attention and memory, see `titanslab.layers.MemoryGate`.
        max_position_embeddings: the length that other programs, such as lm-eval, take as the model's. The models
            themselves have no limit; the default is the longest text that was tested.
        initializer_range: standard deviation of linear layers at the start; embeddings take `hidden_size ** -0.5`.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; other types raise.
        classifier_pooling, classifier_dropout: of `TitansForSequenceClassification`: the "mean" of the outputs or the
            "last" one, and the dropout before its head.
        fused_loss: in training with labels, compute the loss in chunks of tokens and return no logits.
    """

    model_type: ClassVar[str] = "titans"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    # Every new config calls this function, which `register.py` sets so that the first one registers the models. It is
    # set once transformers has loaded its Auto classes, see there.
    first_use: ClassVar[Callable[[], None] | None] = None

    variant: str = "mac"
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    memory: MemoryConfig = None  # type: ignore[assignment]  # a MemoryConfig as soon as the config is made
    memory_write_cost: float = 0.0
    memory_write_floor: float | None = None
    attention_conv_size: int = 1
    segment_len: int = 512
    window_size: int | None = 2048
    num_persistent_tokens: int = 128
    gate_type: str = "mix"
    rope_parameters: dict[str, Any] | None = None
    max_position_embeddings: int = 10_000_000
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    fused_loss: bool = False
    classifier_pooling: str = "mean"
    classifier_dropout: float = 0.0
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        options = {MEMORY_OPTIONS[name]: kwargs.pop(name) for name in list(kwargs) if name in MEMORY_OPTIONS}
        self._reject_unknown(kwargs)
        for name in ("hidden_size", "num_attention_heads"):
            check_integer(name, getattr(self, name), 1)
        if self.intermediate_size is None:
            self.intermediate_size = -(-8 * self.hidden_size // 3 // 64) * 64
        self.memory = self._memory(self.memory, options)
        if not isinstance(self.rope_parameters, dict | None):
            raise ValueError(
                f"rope_parameters must be a table of rope_type and rope_theta, got {self.rope_parameters!r}"
            )
        self.rope_parameters = dict(self.rope_parameters or {})
        if self.rope_parameters.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters: rope_type must be 'default', got {self.rope_parameters['rope_type']!r}")
        super().__post_init__(**kwargs)
        self.check()
        from transformers import AutoConfig  # noqa: F401  its import sets `first_use`

        if TitansConfig.first_use is not None:
            TitansConfig.first_use()

    def _memory(self, memory: MemoryConfig | dict[str, Any] | None, options: dict[str, Any]) -> MemoryConfig:
        """The options of `memory` with some of them changed; None stands for the default heads and half-lives."""
        if not isinstance(memory, MemoryConfig | dict | None):
            raise OptionError("memory", f"must be a MemoryConfig, a dict of its fields or None, got {memory!r}")
        values = (memory.to_dict() if isinstance(memory, MemoryConfig) else memory or {}) | options
        known = tuple(MEMORY_OPTIONS.values())
        for name in values:
            if name not in known:
                raise ValueError(f"memory has no option {name!r}{nearest(name, known)}")
        if values.get("num_heads") is None:
            values["num_heads"] = self.num_attention_heads
        if values.get("half_lives") is None:
            values.pop("half_lives", None)
        try:
            return MemoryConfig(**values)
        except OptionError as error:
            name = next(name for name, option in MEMORY_OPTIONS.items() if option == error.name)
            raise OptionError(name, error.problem) from None

    def __getattr__(self, name: str) -> Any:
        if name in MEMORY_OPTIONS:
            return getattr(self.memory, MEMORY_OPTIONS[name])
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in MEMORY_OPTIONS:
            name, value = "memory", self._memory(self.memory, {MEMORY_OPTIONS[name]: value})
        elif name == "memory" and isinstance(value, dict) and isinstance(self.memory, MemoryConfig):
            value = self._memory(self.memory, value)
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, `memory` as a dict; `TitansConfig(**values)` is the inverse."""
        return super().to_dict() | {"memory": self.memory.to_dict()}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config in a config.json; an older file keeps the function of its time (`LATER_FIELDS`)."""
        memory = config_dict.get("memory") or {}
        given = config_dict.keys() | kwargs.keys() | {n for n, option in MEMORY_OPTIONS.items() if option in memory}
        later = {name: value for name, value in LATER_FIELDS.items() if name not in given}
        return super().from_dict(later | config_dict, **kwargs)

    @classmethod
    def preset(cls, name: str, variant: str = "mac", **overrides: Any) -> "TitansConfig":
        """A model of the paper's sizes, or `tiny` for a laptop.

        Shapes of 170m, 340m, 760m and 1.3b are the camera-ready's. It has no row for 400m (OURS: 340m with 28
        blocks, which keeps heads of 64). A preset's name is not its number of parameters, see `titanslab.models.cost`.

        Raises:
            ValueError: an unknown preset, variant or field, with the nearest known name.
        """
        check_choice("preset", name, tuple(PRESETS))
        known = cls.field_names()
        for field in overrides:
            if field not in (*known, "num_labels"):
                raise ValueError(f"TitansConfig has no field {field!r}{nearest(field, known)}")
        return cls(**{**PRESETS[name], "variant": variant, **overrides})

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def memory_head_dim(self) -> int:
        """Width of a memory head."""
        return self.memory.width(self.hidden_size)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Every name that a keyword argument may have."""
        return (*(field.name for field in fields(cls)), *MEMORY_OPTIONS)

    def check(self) -> None:
        """Raise a ValueError that names the first field with an impossible value."""
        check_choice("variant", self.variant, VARIANTS)
        check_choice("gate_type", self.gate_type, GATES)
        check_choice("classifier_pooling", self.classifier_pooling, POOLINGS)
        if not is_number(self.classifier_dropout) or not 0 <= self.classifier_dropout < 1:
            raise ValueError(
                f"classifier_dropout must be a number of at least 0 and below 1, got {self.classifier_dropout!r}"
            )
        sizes = "vocab_size hidden_size intermediate_size num_attention_heads segment_len max_position_embeddings"
        for name in sizes.split():
            check_integer(name, getattr(self, name), 1)
        check_integer("num_hidden_layers", self.num_hidden_layers, 1, MOST_LAYERS)
        check_integer("attention_conv_size", self.attention_conv_size, 1, MOST_TAPS)
        check_integer("num_persistent_tokens", self.num_persistent_tokens, 0)
        if self.window_size is not None:
            check_integer("window_size", self.window_size, 1)
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
        divided = ("num_attention_heads", "num_memory_heads")
        for name in divided if self.memory.head_dim is None else divided[:1]:
            if self.hidden_size % getattr(self, name):
                raise ValueError(
                    f"hidden_size must be a multiple of {name}, got {self.hidden_size} and {getattr(self, name)}"
                )
        if self.variant != "lmm" and self.head_dim % 2:
            raise ValueError(
                "hidden_size / num_attention_heads must be even for rotary positions, "
                f"got {self.hidden_size} / {self.num_attention_heads} = {self.head_dim}"
            )
        for name in ("tie_word_embeddings", "fused_loss", "use_cache"):
            check_flag(name, getattr(self, name))
        check_positive("rms_norm_eps", self.rms_norm_eps, 1.0)
        check_positive("initializer_range", self.initializer_range, 1000.0)
        cost = self.memory_write_cost
        if not is_number(cost) or not 0 <= cost <= 1e6:
            raise ValueError(f"memory_write_cost must be a number of at least 0 and at most 1e6, got {cost!r}")
        floor = self.memory_write_floor
        if floor is not None and not (is_number(floor) and 0 < floor < 1):
            raise ValueError(
                f"memory_write_floor must be None or a number between 0 and 1, such as 1e-4, got {floor!r}"
            )
        theta: Any = (self.rope_parameters or {}).get("rope_theta")
        check_positive("rope_parameters: rope_theta", theta)
        if theta < 1:
            raise ValueError(f"rope_parameters: rope_theta must be a number of at least 1, got {theta!r}")
        for name in ("pad_token_id", "bos_token_id"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 0 <= value < self.vocab_size):
                raise ValueError(
                    f"{name} must be None or within the vocabulary 0..{self.vocab_size - 1}, got {value!r}"
                )

    def _reject_unknown(self, kwargs: dict[str, Any]) -> None:
        """Raise a ValueError for a misspelt field, which would become an attribute that no code reads."""
        kind = kwargs.get("model_type") or self.model_type
        if kind != self.model_type:
            raise ValueError(
                f"model_type is {kind!r}, not {self.model_type!r}: this is the config of another architecture; load it "
                "with AutoConfig, and its model with AutoModelForCausalLM"
            )
        known = self.field_names()
        for name in set(kwargs) - {"model_type", *FOREIGN}:
            guess = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            if guess and not name.startswith("_"):
                raise ValueError(f"unknown field {name!r} in TitansConfig; did you mean {guess[0]!r}?")


FOREIGN = ("torch_dtype", "num_labels", "rope_theta", "rope_scaling", "attn_implementation", "output_attentions")
