"""What Hugging Face's Trainer looks up in its own tables instead of asking the model: shifted labels, weight decay."""

from functools import wraps
from typing import Any

from torch import nn


def shift_labels_of(class_name: str, model_type: str) -> None:
    """Make label smoothing shift the labels of a causal language model, which Trainer does for classes it knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] = class_name


def spare_in_weight_decay() -> None:
    """Make `Trainer` leave out of weight decay the parameters that a Titans model inside its model leaves out.

    Trainer decides by the names of modules and has no question to the model. So its method is wrapped, once, and for
    other models it gives what it gave before. A subclass with a method of its own is not touched.
    """
    from transformers import Trainer

    plain = Trainer.get_decay_parameter_names
    if getattr(plain, "asks_the_model", False):
        return

    @wraps(plain)
    def names(self: Trainer, model: nn.Module) -> list[str]:
        spared = {
            id(parameter)
            for module in model.modules()
            if hasattr(type(module), "decay_parameter_names")  # a wrapper passes attributes on
            for parameter in _spared(module)
        }
        known = dict(model.named_parameters())
        return [name for name in plain(self, model) if name not in known or id(known[name]) not in spared]

    names.asks_the_model = True  # type: ignore[attr-defined]
    Trainer.get_decay_parameter_names = names  # type: ignore[method-assign]


def _spared(model: Any) -> list[nn.Parameter]:
    decayed = set(model.decay_parameter_names())
    return [parameter for name, parameter in model.named_parameters() if name not in decayed]
