"""Names for Auto*: the config at once, the models when the first config is made.

Importing the model classes of transformers takes seconds, and a config is made before any model is.
"""

from functools import cache

from transformers import AutoConfig

from titanslab.models.config import TitansConfig


def register_config() -> None:
    """Make `AutoConfig` know `model_type: titans`, and the first config register the models."""
    AutoConfig.register(TitansConfig.model_type, TitansConfig, exist_ok=True)
    TitansConfig.first_use = register_models


@cache
def register_models() -> None:
    """Make `AutoModel` and `AutoModelForCausalLM` know the models."""
    from transformers import AutoModel, AutoModelForCausalLM

    from titanslab.models.modeling import TitansForCausalLM, TitansModel
    from titanslab.models.plain_trainer import shift_labels_of

    AutoModel.register(TitansConfig, TitansModel, exist_ok=True)
    AutoModelForCausalLM.register(TitansConfig, TitansForCausalLM, exist_ok=True)
    shift_labels_of(TitansForCausalLM.__name__, TitansConfig.model_type)
