"""Titans: sequence models with a neural long-term memory that keeps learning while it reads.

    from titanslab import TitansConfig, TitansForCausalLM, NeuralMemory

Names load when first used, and `import titanslab` alone loads neither torch nor transformers. `titanslab.memory` needs
torch alone; the models need transformers, whose Auto classes know them once
`titanslab` is imported, before transformers or after it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from titanslab._version import __version__
from titanslab.models.register import register

if TYPE_CHECKING:
    from titanslab.graft.attach import graft
    from titanslab.graft.cache import GraftCache
    from titanslab.graft.config import GraftConfig
    from titanslab.graft.load import load_graft
    from titanslab.memory import (
        MemoryConfig,
        MemoryNetwork,
        MemoryParams,
        MemoryState,
        NeuralMemory,
        NeuralMemoryState,
        neural_memory,
    )
    from titanslab.models.cache import TitansCache
    from titanslab.models.classification import TitansForSequenceClassification
    from titanslab.models.config import TitansConfig
    from titanslab.models.forecasting import TitansForForecasting
    from titanslab.models.forecasting_config import TitansForecastingConfig
    from titanslab.models.modeling import TitansForCausalLM, TitansModel

_MODELS = {
    "TitansCache": "cache",
    "TitansConfig": "config",
    "TitansForCausalLM": "modeling",
    "TitansForForecasting": "forecasting",
    "TitansForecastingConfig": "forecasting_config",
    "TitansForSequenceClassification": "classification",
    "TitansModel": "modeling",
}
_GRAFT = {"GraftCache": "cache", "GraftConfig": "config", "load_graft": "load"}

__all__ = [
    "GraftCache",
    "GraftConfig",
    "MemoryConfig",
    "MemoryNetwork",
    "MemoryParams",
    "MemoryState",
    "NeuralMemory",
    "NeuralMemoryState",
    "TitansCache",
    "TitansConfig",
    "TitansForCausalLM",
    "TitansForForecasting",
    "TitansForSequenceClassification",
    "TitansForecastingConfig",
    "TitansModel",
    "__version__",
    "graft",
    "load_graft",
    "neural_memory",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "graft":  # the room, which can be called as its function
        return import_module(f"{__name__}.graft")
    if name in _GRAFT:
        module = f"graft.{_GRAFT[name]}"
    else:
        module = f"models.{_MODELS[name]}" if name in _MODELS else "memory"
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
