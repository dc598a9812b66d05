"""The model that [model] of a recipe describes: new from a preset, from a checkpoint, or a baseline of transformers."""

from typing import Any

from titanslab.models.config import TitansConfig
from titanslab.runs.loading import load_config, load_model
from titanslab.training.baselines import architecture_config, start_gated_deltanet
from titanslab.training.recipe import ModelRecipe, Recipe


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """The model of a recipe, in float32; a new one is drawn with torch's random numbers.

    Raises ValueError for a vocabulary smaller than the tokenizer's and for fields that the config refuses.
    """
    section = recipe.model
    if section.pretrained is not None:
        model: Any = load_model(section.pretrained, **_options(section)).float()
    elif section.architecture is not None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(model_config(recipe, tokenizer)).float()
        if section.start is not None:
            start_gated_deltanet(model, section.start)
    else:
        from titanslab.models.modeling import TitansForCausalLM

        model = TitansForCausalLM(model_config(recipe, tokenizer))
    _check_vocabulary(model.config.vocab_size, recipe, tokenizer)
    return model


def model_config(recipe: Recipe, tokenizer: Any) -> Any:
    """The config that [model] describes; vocabulary and special tokens come from the tokenizer."""
    section = recipe.model
    if section.pretrained is not None:
        return load_config(section.pretrained, **_options(section))
    options = {"vocab_size": len(tokenizer)} | _options(section)
    _check_vocabulary(options["vocab_size"], recipe, tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        options.setdefault(name, getattr(tokenizer, name))
    if section.architecture is not None:
        return architecture_config(section.architecture, options)
    return TitansConfig.preset(section.preset, variant=section.variant, **options)


def _options(section: ModelRecipe) -> dict[str, Any]:
    """The fields of a config in the section; `window_size = "all"` stands for None, which TOML lacks."""
    every = section.options.get("window_size") == "all"
    return section.options | ({"window_size": None} if every else {})


def _check_vocabulary(size: Any, recipe: Recipe, tokenizer: Any) -> None:
    if isinstance(size, int) and size < len(tokenizer):
        raise ValueError(
            f"the model's vocab_size is {size}, but the tokenizer {recipe.data.tokenizer!r} has {len(tokenizer)} "
            "tokens; leave model.vocab_size out or choose the tokenizer the model was trained with"
        )
