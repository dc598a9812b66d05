"""Models of transformers as baselines in a recipe: [model] architecture = "llama", "qwen3_next", ..."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from titanslab.models.config import nearest

if TYPE_CHECKING:
    from titanslab.training.recipe import DataRecipe

TITANS = "titans"
STARTS = ("authors", "recall")  # of a Gated DeltaNet, see gated_deltanet.py


def check_architecture(name: str) -> None:
    """Raise ValueError unless `name` is the model_type of a causal language model of transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if name not in KNOWN:
        raise ValueError(
            f"model.architecture is {name!r}; it must be the model_type of a causal language model of transformers, "
            f"such as llama or qwen3_next; leave it out for a Titans model{nearest(name, tuple(KNOWN))}"
        )


def option_names(name: str) -> list[str]:
    """The fields of the config of that architecture, sorted, less those of every config."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    common = set(inspect.signature(PreTrainedConfig).parameters) - {"tie_word_embeddings"}
    tokens = {"pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"}
    return sorted(set(inspect.signature(CONFIG_MAPPING[name]).parameters) - common - {"kwargs"} | tokens)


def architecture_config(name: str, options: dict[str, Any]) -> Any:
    """The config of that architecture; what cannot be raises ValueError in one line."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(name, **options)
    except Exception as error:  # configs check themselves, each release with exceptions of its own
        raise ValueError(f"[model] of architecture {name!r}: {' '.join(str(error).split())[:400]}") from error


def check_one_document_a_row(model_type: str, data: DataRecipe) -> None:
    """Raise ValueError where rows would hold several documents that the model cannot tell apart."""
    if model_type == TITANS:
        return
    if data.train is not None and (data.pack_documents or data.streaming):
        raise ValueError(
            f"data.pack_documents = true puts several documents into a row, and a {model_type} model would read "
            "from one into the next; set data.pack_documents = false and data.streaming = false"
        )
    if data.task_options.get("pack"):
        raise ValueError(
            f"data.task_options.pack = true puts several samples into a row, and a {model_type} model would read "
            "from one into the next; take it out"
        )


def without_documents(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch for a model that knows no `document_ids`: with one document a row, what follows it has no label."""
    return {name: values for name, values in batch.items() if name != "document_ids"}
