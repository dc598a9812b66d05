"""Fields that every forecasting model has, and their checks."""

from typing import Any

from titanslab.memory.config import OptionError, check_choice, check_flag, check_integer, is_number

LOSSES = ("mse", "mae", "huber", "quantile")
SCALINGS = ("instance", "none")
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of a config with loss="quantile" that names none


def check_series_fields(config: Any) -> None:
    """Set the defaults that depend on other fields, and raise a ValueError that names the first impossible field.

    Args:
        config: a config with context_length, prediction_length, num_input_channels, scaling, scaling_affine, loss,
            quantiles and head_dropout.
    """
    for name in ("context_length", "prediction_length", "num_input_channels"):
        check_integer(name, getattr(config, name), 1)
    config.scaling = "none" if config.scaling is None else config.scaling
    check_choice("scaling", config.scaling, SCALINGS)
    check_flag("scaling_affine", config.scaling_affine)
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
