"""The Titans models, as Hugging Face models."""

from titanslab.models.config import TitansConfig

_LAZY = {
    "TitansCache": "cache",
    "TitansForCausalLM": "modeling",
    "TitansModel": "modeling",
    "TitansPreTrainedModel": "modeling",
}

__all__ = ["TitansCache", "TitansConfig", "TitansForCausalLM", "TitansModel", "TitansPreTrainedModel"]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
