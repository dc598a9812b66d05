"""The forecasting model behind the classes for other libraries."""

from typing import Any

from titanslab.models.forecasting import TitansForForecasting
from titanslab.models.forecasting_config import TitansForecastingConfig


def forecasting_core(
    context_length: int, prediction_length: int, channels: int, **options: Any
) -> TitansForForecasting:
    """A `TitansForForecasting` that maps `[B, context_length, channels]` to `[B, prediction_length, channels]`.

    Options are fields of its config; None stands for the default. Patches are never longer than the history, which
    other libraries make as short as 12 rows, and a stride never longer than a patch.

    Raises:
        ValueError: an impossible value; the message names the field.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    default = TitansForecastingConfig
    given["patch_length"] = min(given.get("patch_length", default.patch_length), context_length)
    given["patch_stride"] = min(given.get("patch_stride", default.patch_stride), given["patch_length"])
    given |= {"context_length": context_length, "prediction_length": prediction_length, "num_input_channels": channels}
    return TitansForForecasting(TitansForecastingConfig(**given))
