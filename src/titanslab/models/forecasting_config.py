"""`TitansForecastingConfig`: every choice of a Titans model that forecasts time series."""

from typing import Any, ClassVar

from titanslab.memory.config import MemoryConfig, OptionError, check_choice, check_flag, check_integer
from titanslab.models.config import VARIANTS, TitansConfig
from titanslab.models.series_config import check_dropout, check_series_fields, register_forecasters

SEQUENCE_MODULES = (*VARIANTS, "gated_deltanet", "none")
WITH_MEMORY = ("lmm", "mac", "mag", "mal")
CHANNEL_MIXINGS = ("mlp", "fft", "variates")
FFT_BLOCKS = 4  # of a token's features, as in SiMBA's code
# Options of the memory that differ from `MemoryConfig`'s: rows have about a dozen tokens. OURS.
MEMORY: dict[str, Any] = {"chunk_size": 4}


class TitansForecastingConfig(TitansConfig):
    """Configuration of `TitansForForecasting`; an impossible value raises a ValueError that names the field.

    Names are those of transformers' `PatchTSTConfig` where it has the field. Fields of `TitansConfig` that a series
    needs too keep their meaning (`hidden_size`, `num_hidden_layers`, `num_attention_heads`, `memory`, `memory_...`,
    `num_persistent_tokens`, `gate_type`); `segment_len` and `window_size` count patches, and default to all of them.

    Args:
        context_length: rows of the history that the model reads.
        prediction_length: rows that it forecasts.
        memory_windows: windows of `context_length` rows before the history that the memory reads first, one after the
            other, each normalised by itself; 0 = none. `past_values` then has `history_length` rows. OURS.
        num_input_channels: columns of the series; parameters do not depend on it, except those of `cycle`,
            `scaling_affine` and channel_mixing "variates".
        patch_length, patch_stride: rows of a patch, and rows from one patch to the next. The last row is repeated
            `patch_stride` times after the history, as in PatchTST's code.
        sequence_module: the token mixer along the patches of a channel: "lmm", "mac", "mag", "mal", or in the
            memory's place "attention", "gated_deltanet", or "none" (no mixing along the patches before the head).
        channel_mixing: the second half of a block: "mlp" is SwiGLU within a token; "fft" is SiMBA's EinFFT; "variates"
            is an MLP across the series' columns, and then SwiGLU.
        dropout: on the patch embedding and on what each half of a block adds.
        head_dropout: before the head.
        scaling: "instance" normalises each history by its own mean and standard deviation, and the forecast is scaled
            back; "none" (or None) does not.
        scaling_affine: learned scale and shift of each column after the normalisation, as in RevIN.
        loss: "mse", "mae", "huber" (delta 1) or "quantile" (pinball), on the values as they are given.
        quantiles: for loss "quantile": rising, with 0.5; default 0.1, 0.2, ... 0.9.
        linear_skip: add a linear map of the normalised history, shared by all columns. OURS for this model; it is
            RLinear.
        cycle: rows of a learned cycle for each column, which is taken from the history and added to the forecast, as in
            CycleNet; 0 = none. It needs `past_time_index`.
    """

    model_type: ClassVar[str] = "titans_forecasting"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["state"]

    variant: str | None = None  # type: ignore[assignment]  # follows from sequence_module
    vocab_size: int = 1
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    segment_len: int | None = None  # type: ignore[assignment]
    window_size: int | None = None
    num_persistent_tokens: int = 0
    context_length: int = 96
    prediction_length: int = 96
    memory_windows: int = 0
    num_input_channels: int = 1
    patch_length: int = 16
    patch_stride: int = 8
    sequence_module: str = "lmm"
    channel_mixing: str = "mlp"
    dropout: float = 0.1
    head_dropout: float = 0.0
    scaling: str | None = "instance"
    scaling_affine: bool = False
    loss: str = "mse"
    quantiles: list[float] | tuple[float, ...] = ()
    linear_skip: bool = False
    cycle: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        check_choice("sequence_module", self.sequence_module, SEQUENCE_MODULES)
        variant = self.sequence_module if self.sequence_module in VARIANTS else "attention"
        if self.variant not in (None, variant):
            raise OptionError(
                "variant",
                f"is {self.variant!r}, but follows from sequence_module={self.sequence_module!r}; leave it out",
            )
        self.variant = variant
        check_series_fields(self)
        check_integer("patch_length", self.patch_length, 1, self.context_length)
        check_integer("patch_stride", self.patch_stride, 1, self.patch_length)
        self.segment_len = self.segment_len or self.num_patches
        self.window_size = self.window_size or self.num_patches
        super().__post_init__(**kwargs)
        register_forecasters()

    def _memory(self, memory: MemoryConfig | dict[str, Any] | None, options: dict[str, Any]) -> MemoryConfig:
        if isinstance(memory, dict | None):
            memory = MEMORY | (memory or {})
        return super()._memory(memory, options)

    @property
    def history_length(self) -> int:
        """Rows of `past_values`: those of the window that is forecast from and of the windows before it."""
        return (1 + self.memory_windows) * self.context_length

    @property
    def num_patches(self) -> int:
        """Tokens of a channel's history."""
        return (self.context_length - self.patch_length) // self.patch_stride + 2

    def check(self) -> None:
        """Raise a ValueError that names the first field with an impossible value."""
        super().check()
        check_choice("channel_mixing", self.channel_mixing, CHANNEL_MIXINGS)
        check_dropout("dropout", self.dropout)
        check_flag("linear_skip", self.linear_skip)
        check_integer("memory_windows", self.memory_windows, 0)
        if self.memory_windows and self.sequence_module not in WITH_MEMORY:
            raise OptionError(
                "memory_windows",
                f"must be 0 for sequence_module={self.sequence_module!r}, without a memory; got {self.memory_windows}",
            )
        if self.channel_mixing == "fft" and self.hidden_size % FFT_BLOCKS:
            raise OptionError("hidden_size", f"must be a multiple of {FFT_BLOCKS} for 'fft', got {self.hidden_size}")
