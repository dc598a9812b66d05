"""Names for Auto*: the config once transformers has its own Auto classes, the models when the first config is made.

Importing transformers takes a second and its model classes take several, so `import titanslab` imports neither.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Make `AutoConfig` know `model_type: titans`: now if transformers has loaded it, else as soon as it does."""
    if AUTO in sys.modules:
        register_config()
    else:
        sys.meta_path.insert(0, _Finder())


def register_config() -> None:
    """Make `AutoConfig` know the configs, and the first config register the models."""
    from transformers import AutoConfig

    from titanslab.models.classifier_configs import ClassifierConfig, GenomicCNNConfig, TrunkClassifierConfig
    from titanslab.models.config import TitansConfig
    from titanslab.models.forecasting_config import TitansForecastingConfig
    from titanslab.models.series_config import BASELINES, SeriesConfig

    own: tuple[Any, ...] = (TitansConfig, TitansForecastingConfig, *BASELINES, GenomicCNNConfig, TrunkClassifierConfig)
    for config in own:
        AutoConfig.register(config.model_type, config, exist_ok=True)
    TitansConfig.first_use = ClassifierConfig.first_use = register_models
    SeriesConfig.first_use = register_forecasters


@cache
def register_models() -> None:
    """Make `AutoModel` and the other Auto classes know the models."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from titanslab.models.classification import TitansForSequenceClassification
    from titanslab.models.classifier_configs import GenomicCNNConfig, TrunkClassifierConfig
    from titanslab.models.cnn import CNNForSequenceClassification
    from titanslab.models.config import TitansConfig
    from titanslab.models.modeling import TitansForCausalLM, TitansModel
    from titanslab.models.plain_trainer import shift_labels_of
    from titanslab.models.trunk_classifier import TrunkForSequenceClassification

    AutoModel.register(TitansConfig, TitansModel, exist_ok=True)
    AutoModelForCausalLM.register(TitansConfig, TitansForCausalLM, exist_ok=True)
    for config, model in (
        (TitansConfig, TitansForSequenceClassification),
        (GenomicCNNConfig, CNNForSequenceClassification),
        (TrunkClassifierConfig, TrunkForSequenceClassification),
    ):
        AutoModelForSequenceClassification.register(config, model, exist_ok=True)
    shift_labels_of(TitansForCausalLM.__name__, TitansConfig.model_type)


@cache
def register_forecasters() -> None:
    """Make `AutoModel` and `AutoModelForTimeSeriesPrediction` know the forecasting models."""
    from transformers import AutoModel, AutoModelForTimeSeriesPrediction

    from titanslab.models.forecaster import ARCHITECTURES

    for model in ARCHITECTURES.values():
        for auto in (AutoModel, AutoModelForTimeSeriesPrediction):
            auto.register(model.config_class, model, exist_ok=True)


class _Finder:
    """Finds the module `AUTO` as the other finders do, with a loader that registers the config afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
        return spec


class _Loader:
    """Loads a module with the loader `inner`, which the module keeps, and then registers the config."""

    def __init__(self, inner: Any, finder: _Finder) -> None:
        self.inner, self.finder = inner, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.inner
        self.inner.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        register_config()
