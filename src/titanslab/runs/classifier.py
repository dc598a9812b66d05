"""A classifier of sequences, opened from its folder, or made of the trunk of a pre-trained language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.runs.loading import (
    find_model_folder,
    load_config,
    load_model,
    load_model_tokenizer,
    load_weights,
    pick_device,
    prepare_process,
)
from titanslab.runs.sequences import SequenceFacts, read_facts

if TYPE_CHECKING:
    import torch

HEAD = "score."


def open_classifier(name: str | Path, device: str | torch.device = "auto") -> tuple[Any, Any, SequenceFacts]:
    """A classifier in evaluation mode, its tokenizer and its facts, for a command; errors as `open_model`.

    Raises:
        ValueError: the folder holds no classifier of sequences.
    """
    folder = find_model_folder(name)
    facts = read_facts(folder)
    place = pick_device(device)
    prepare_process()
    from transformers import AutoModelForSequenceClassification

    model: Any = load_weights(folder, AutoModelForSequenceClassification)
    outputs = model.config.num_labels
    if outputs != len(facts.labels):
        raise ValueError(f"the model in {str(folder)!r} has {outputs} outputs, and its run {len(facts.labels)} labels")
    return model.to(place), load_model_tokenizer(folder), facts


def pretrained_classifier(name: str | Path, labels: Sequence[str], **changes: Any) -> Any:
    """A classifier with a new head over the trunk of a pre-trained model, in float32.

    Args:
        name: the folder of a causal language model, of Titans or of transformers, or of a classifier of sequences,
            which keeps its head where it has as many labels.
        labels: names of the classes.
        changes: fields of the config with other values than in the folder, such as `classifier_pooling`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`.
    """
    from transformers import AutoModelForSequenceClassification

    from titanslab.models.classifier_configs import ClassifierConfig, TrunkClassifierConfig
    from titanslab.models.classifiers import HEAD_OPTIONS, label_fields
    from titanslab.models.config import TitansConfig

    head: Any = label_fields(labels)
    config = load_config(name)
    if isinstance(config, TitansConfig | ClassifierConfig):
        kind = AutoModelForSequenceClassification
        return load_weights(name, kind, new=(HEAD,), **changes, **head).float()
    from titanslab.models.trunk_classifier import TrunkForSequenceClassification

    own: dict[str, Any] = {key: changes.pop(key) for key in HEAD_OPTIONS if key in changes}
    trunk: Any = load_model(name, **changes)
    whole = TrunkClassifierConfig(trunk=trunk.config, **own, **head)
    return TrunkForSequenceClassification(whole, trunk.base_model).float().eval()
