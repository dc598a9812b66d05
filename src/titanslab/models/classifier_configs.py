"""Configs of the classifiers that are compared with a Titans model: a CNN, and any trunk of transformers, pooled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, PreTrainedConfig

from titanslab.memory.config import check_choice, check_integer
from titanslab.models.config import POOLINGS, WINDOWED

CNN, TRUNK = "genomic_cnn", "trunk_classifier"
CNN_WIDTHS, CNN_KERNEL = (16, 8, 4), 8


class ClassifierConfig(PreTrainedConfig):
    """A config whose first use makes the Auto classes know its model, as that of a `TitansConfig` does."""

    first_use: ClassVar[Callable[[], None] | None] = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if ClassifierConfig.first_use is not None:
            ClassifierConfig.first_use()


class GenomicCNNConfig(ClassifierConfig):
    """Config of the CNN of GenomicBenchmarks.

    Args:
        vocab_size, embedding_size: of the embedding, whose width the benchmark's experiments set to 100.
        max_length: tokens that the model reads; shorter rows are padded, longer ones raise.
        dense_size: width between its two last linear layers.
    """

    model_type: ClassVar[str] = CNN

    vocab_size: int = 8
    embedding_size: int = 100
    max_length: int = 512
    dense_size: int = 512
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "embedding_size", "dense_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("max_length", self.max_length, self.shortest())

    @staticmethod
    def shortest() -> int:
        """Tokens of the shortest row of which the last pooling has one output."""
        length = 1
        for _ in CNN_WIDTHS:
            length = 2 * length + CNN_KERNEL - 1
        return length


class TrunkClassifierConfig(ClassifierConfig):
    """Config of a classifier over a trunk of transformers.

    Args:
        trunk: the config of the trunk, as an object or as a dict with its `model_type`.
        classifier_pooling: "mean" or "last". classifier_dropout: before the head.
    """

    model_type: ClassVar[str] = TRUNK

    trunk: PreTrainedConfig | dict[str, Any] | None = None
    classifier_pooling: str = "mean"
    classifier_dropout: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.trunk, dict):
            name = self.trunk.get("model_type", "")
            if name in WINDOWED:
                import titanslab.models.windowed  # noqa: F401  registers these two
            if name not in CONFIG_MAPPING:
                raise ValueError(f"trunk has the model_type {name!r}, which transformers does not know")
            values = {key: value for key, value in self.trunk.items() if key != "model_type"}
            self.trunk = CONFIG_MAPPING[name](**values)
        check_choice("classifier_pooling", self.classifier_pooling, POOLINGS)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, `trunk` as a dict."""
        trunk = self.trunk.to_dict() if isinstance(self.trunk, PreTrainedConfig) else self.trunk
        return super().to_dict() | {"trunk": trunk}
