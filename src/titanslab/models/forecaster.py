"""`forecaster`: a forecasting model by the name of its architecture."""

from typing import Any

from titanslab.memory.config import check_choice, nearest
from titanslab.models.forecasting import TitansForForecasting
from titanslab.models.forecasting_baselines import (
    DLinearForForecasting,
    InvertedForForecasting,
    LinearForForecasting,
    PatchTSTForForecasting,
)

# Fields of `TitansConfig` that a forecasting model does not read.
_TEXT = "variant vocab_size max_position_embeddings memory_write_cost memory_write_floor fused_loss use_cache"
_TEXT += " tie_word_embeddings pad_token_id bos_token_id eos_token_id classifier_pooling classifier_dropout"
UNREAD = tuple(_TEXT.split())
ARCHITECTURES: dict[str, Any] = {
    "titans": TitansForForecasting,
    "linear": LinearForForecasting,
    "dlinear": DLinearForForecasting,
    "patchtst": PatchTSTForForecasting,
    "itransformer": InvertedForForecasting,
}


def forecaster_config(architecture: str | None, options: dict[str, Any]) -> Any:
    """The config of an architecture, with `options` as its fields.

    Args:
        architecture: a name in `ARCHITECTURES`; None = "titans".
        options: fields of the architecture's config, see `option_names`.

    Raises:
        ValueError: an unknown architecture or option, with the nearest known name, or an impossible value.
    """
    name = "titans" if architecture is None else architecture
    check_choice("architecture", name, tuple(ARCHITECTURES))
    known = option_names(name)
    for option in options:
        if option not in known:
            raise ValueError(f"architecture {name!r} has no option {option!r}{nearest(option, known)}")
    return ARCHITECTURES[name].config_class(**options)


def forecaster(architecture: str | None, options: dict[str, Any]) -> Any:
    """A new forecasting model; arguments and errors as those of `forecaster_config`."""
    config = forecaster_config(architecture, options)
    return ARCHITECTURES["titans" if architecture is None else architecture](config)


def option_names(architecture: str) -> tuple[str, ...]:
    """The fields of an architecture's config that a user may give."""
    from transformers import PreTrainedConfig

    config = ARCHITECTURES[architecture].config_class
    common = {*vars(PreTrainedConfig), *PreTrainedConfig.__dataclass_fields__}
    return tuple(name for name in config.field_names() if name not in common and name not in UNREAD)
