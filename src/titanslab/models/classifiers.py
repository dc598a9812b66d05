"""A new classifier by the name of its architecture: a Titans model, the CNN, or any trunk of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from titanslab.memory.config import nearest
from titanslab.models.classifier_configs import GenomicCNNConfig, TrunkClassifierConfig
from titanslab.models.config import WINDOWED, TitansConfig

CNN_NAME = "cnn"
CNN_OPTIONS = ("vocab_size", "embedding_size", "max_length", "dense_size", "pad_token_id")
HEAD_OPTIONS = ("classifier_pooling", "classifier_dropout")  # of every architecture but the CNN


def check_classifier_architecture(name: str) -> None:
    """Raise ValueError unless `name` is "cnn" or the model_type of a causal language model of transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if name not in (CNN_NAME, *WINDOWED, *KNOWN):
        raise ValueError(
            f"architecture {name!r} is not known; give 'cnn', the model_type of a causal language model of "
            f"transformers such as 'qwen3_next', or none for a Titans model"
            f"{nearest(name, (CNN_NAME, *WINDOWED, *KNOWN))}"
        )


def classifier_config(
    architecture: str | None, options: dict[str, Any], *, labels: Sequence[str], tokenizer: Any, max_length: int
) -> PreTrainedConfig:
    """The config of a new classifier.

    Args:
        architecture: None for a Titans model, "cnn" for the CNN of GenomicBenchmarks, or a `model_type` of transformers
            such as "qwen3_next" or "llama", whose trunk is pooled as that of a Titans model.
        options: fields of the config; for a Titans model those of `TitansConfig`, with "preset" and "variant". Of a
            trunk of transformers, `HEAD_OPTIONS` are those of the classifier and all others of the trunk.
        labels: names of the classes. tokenizer: of the sequences; its vocabulary and special tokens are the default.
        max_length: tokens of the longest sequence, which the CNN needs.

    Raises:
        ValueError: an architecture or a field that does not exist, or a value that the config refuses.
    """
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    body: dict[str, Any] = {"vocab_size": len(tokenizer)} | special | options
    head: Any = label_fields(labels)
    if architecture is None:
        preset = {"preset": "tiny", "variant": "mac"} | body
        return TitansConfig.preset(preset.pop("preset"), preset.pop("variant"), **preset, **head)
    check_classifier_architecture(architecture)
    if architecture == CNN_NAME:
        for name in options:
            if name not in CNN_OPTIONS:
                raise ValueError(f"the CNN has no option {name!r}{nearest(name, CNN_OPTIONS)}")
        return GenomicCNNConfig(**{"max_length": max_length} | body, **head)
    own = {name: body.pop(name) for name in HEAD_OPTIONS if name in body}
    if architecture in WINDOWED:
        import titanslab.models.windowed  # noqa: F401  registers these two
    try:
        trunk = AutoConfig.for_model(architecture, **body)
    except Exception as error:  # each config raises exceptions of its own
        raise ValueError(f"architecture {architecture!r}: {' '.join(str(error).split())[:400]}") from error
    return TrunkClassifierConfig(trunk=trunk, **own, **head)


def new_classifier(config: PreTrainedConfig) -> Any:
    """The model of `classifier_config`, in float32, drawn with torch's random numbers."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_config(config).float()


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of a config of transformers for these classes."""
    if len(labels) < 2:
        raise ValueError(f"a classifier needs at least two labels, got {', '.join(labels) or 'none'}")
    numbered = dict(enumerate(labels))
    return {
        "id2label": numbered,
        "label2id": {label: number for number, label in numbered.items()},
        "problem_type": "single_label_classification",
    }
