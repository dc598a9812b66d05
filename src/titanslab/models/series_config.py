"""Fields that every forecasting model has, and their checks; the configs of the baselines."""

import difflib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from titanslab.memory.config import OptionError, check_choice, check_flag, check_integer, is_number

LOSSES = ("mse", "mae", "huber", "quantile")
SCALINGS = ("instance", "none")
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of a config with loss="quantile" that names none


def check_series_fields(config: Any) -> None:
    """Set the defaults that depend on other fields, and raise a ValueError that names the first impossible field.

    Args:
        config: a config with the fields of `SeriesConfig`.
    """
    for name in ("context_length", "prediction_length", "num_input_channels"):
        check_integer(name, getattr(config, name), 1)
    config.scaling = "none" if config.scaling is None else config.scaling
    check_choice("scaling", config.scaling, SCALINGS)
    check_flag("scaling_affine", config.scaling_affine)
    check_integer("cycle", config.cycle, 0)
    check_choice("loss", config.loss, LOSSES)
    quantiles = config.quantiles
    if not isinstance(quantiles, list | tuple) or not all(is_number(q) and 0 < q < 1 for q in quantiles):
        raise OptionError("quantiles", f"must be numbers between 0 and 1, such as [0.1, 0.5, 0.9], got {quantiles!r}")
    if config.loss == "quantile":
        quantiles = tuple(quantiles) or QUANTILES
        if list(quantiles) != sorted(set(quantiles)) or 0.5 not in quantiles:
            raise OptionError("quantiles", f"must rise and hold 0.5, the point forecast, got {list(quantiles)}")
    elif quantiles:
        raise OptionError("quantiles", f"must be empty for loss={config.loss!r}; give loss='quantile' to predict them")
    config.quantiles = list(quantiles)
    check_dropout("head_dropout", config.head_dropout)


def check_dropout(name: str, value: object) -> None:
    """OptionError unless `value` is a share of at least 0 and below 1."""
    if not is_number(value) or not 0 <= value < 1:  # type: ignore[operator]
        raise OptionError(name, f"must be a number of at least 0 and below 1, got {value!r}")


def check_heads(hidden_size: int, heads: int) -> None:
    """OptionError unless the heads divide the width."""
    if hidden_size % heads:
        raise OptionError("hidden_size", f"must be a multiple of num_attention_heads, got {hidden_size} and {heads}")


class SeriesConfig(PreTrainedConfig):
    """Base of the configs of baselines in forecasting; fields as in `TitansForecastingConfig`.

    Args:
        context_length, prediction_length, num_input_channels: shape of the history and of the forecast.
        scaling, scaling_affine: reversible normalisation of each history.
        loss, quantiles: the training loss and the quantiles that it needs.
        head_dropout: before the head.
        cycle: rows of a learned cycle for each column; 0 = none.
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["state"]
    first_use: ClassVar[Callable[[], None] | None] = None  # as in `TitansConfig`, for the forecasting models

    context_length: int = 96
    prediction_length: int = 96
    num_input_channels: int = 1
    scaling: str | None = "instance"
    scaling_affine: bool = False
    loss: str = "mse"
    quantiles: list[float] | tuple[float, ...] = ()
    head_dropout: float = 0.0
    cycle: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        known = self.field_names()
        for name in kwargs:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            if near and not hasattr(PreTrainedConfig, name):
                raise ValueError(f"unknown field {name!r} in {type(self).__name__}; did you mean {near[0]!r}?")
        check_series_fields(self)
        super().__post_init__(**kwargs)
        self.check()
        register_forecasters()

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Every name that a keyword argument may have."""
        return tuple(field.name for field in fields(cls))

    @property
    def history_length(self) -> int:
        """Rows of `past_values`."""
        return self.context_length

    def check(self) -> None:
        """Raise a ValueError that names the first field with an impossible value."""


def register_forecasters() -> None:
    """Let the Auto classes know the forecasting models; every new config of one calls this."""
    from transformers import AutoConfig  # noqa: F401  its import sets `first_use`

    if SeriesConfig.first_use is not None:
        SeriesConfig.first_use()


class LinearForecastingConfig(SeriesConfig):
    """A linear map of the normalised history, shared by the columns: RLinear; with `cycle`, CycleNet-Linear."""

    model_type: ClassVar[str] = "titanslab_linear"


class DLinearConfig(SeriesConfig):
    """DLinear (arXiv 2205.13504): a moving mean and the rest, each with a linear map shared by the columns.

    Args:
        moving_average: rows of the mean, an odd number.
    """

    model_type: ClassVar[str] = "titanslab_dlinear"

    scaling: str | None = "none"
    moving_average: int = 25

    def check(self) -> None:
        """Raise a ValueError that names the first field with an impossible value."""
        check_integer("moving_average", self.moving_average, 1)
        if self.moving_average % 2 == 0:
            raise OptionError("moving_average", f"must be odd, got {self.moving_average}")


class InvertedConfig(SeriesConfig):
    """Inverted attention (iTransformer, arXiv 2310.06625): a token for each column, attention among the columns."""

    model_type: ClassVar[str] = "titanslab_itransformer"

    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 128
    dropout: float = 0.1

    def check(self) -> None:
        """Raise a ValueError that names the first field with an impossible value."""
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            check_integer(name, getattr(self, name), 1)
        check_heads(self.hidden_size, self.num_attention_heads)
        check_dropout("dropout", self.dropout)


class PatchTSTForecastingConfig(SeriesConfig):
    """PatchTST of transformers; sizes and dropout as in `PatchTSTConfig`, `dropout` at all places of a layer."""

    model_type: ClassVar[str] = "titanslab_patchtst"

    patch_length: int = 16
    patch_stride: int = 8
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 128
    dropout: float = 0.1
    norm_type: str = "batchnorm"
    pre_norm: bool = True

    def check(self) -> None:
        """Raise a ValueError that names the first field with an impossible value."""
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("patch_length", self.patch_length, 1, self.context_length - 1)
        check_integer("patch_stride", self.patch_stride, 1, self.patch_length)
        check_heads(self.hidden_size, self.num_attention_heads)
        check_dropout("dropout", self.dropout)
        check_choice("norm_type", self.norm_type, ("batchnorm", "layernorm"))
        check_flag("pre_norm", self.pre_norm)


BASELINES: tuple[type[SeriesConfig], ...] = (
    LinearForecastingConfig,
    DLinearConfig,
    InvertedConfig,
    PatchTSTForecastingConfig,
)
