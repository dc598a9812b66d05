"""The model that [model] of a recipe describes: new from a preset, from a checkpoint, or a baseline of transformers."""

import os
from contextlib import suppress
from typing import Any

from titanslab.data.template import chat_template
from titanslab.memory.config import MOST_LAYERS, check_integer
from titanslab.models.config import TitansConfig
from titanslab.runs.loading import load_config, load_model, load_model_tokenizer
from titanslab.training.baselines import architecture_config, start_layers, start_usually
from titanslab.training.parameters import fit_parameters
from titanslab.training.recipe import ModelRecipe, Recipe


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """The model of a recipe, in float32; a new one is drawn with torch's random numbers.

    Raises ValueError for a vocabulary smaller than the tokenizer's and for fields that the config refuses, and
    MemoryError for a Titans model that this machine's memory cannot hold.
    """
    section, config = recipe.model, model_config(recipe, tokenizer)
    model: Any
    if section.pretrained is not None:
        model = load_model(section.pretrained, **config_options(section.options)).float()
        if hasattr(model, "graft"):
            raise ValueError(
                f"model.pretrained = {section.pretrained!r} has a graft, which a recipe with [graft] trains; name its "
                "base there"
            )
        return model
    if section.architecture is None:
        from titanslab.models.modeling import TitansForCausalLM

        _check_memory(config, recipe.training.cpu)
        model = TitansForCausalLM(config)
        if section.start is not None:
            start_usually(model)
        return model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config).float()
    if section.start is not None:
        start_layers(model, section.start)
    return model


def _check_memory(config: TitansConfig, trains_on_cpu: bool) -> None:
    """MemoryError if this machine has less memory than the weights take, in training with gradients and Adam's moments.

    A model starts on the CPU wherever it is trained.
    """
    from titanslab.models.cost import least_parameters

    parameters, has = least_parameters(config), memory_bytes()
    needs = parameters * (16 if trains_on_cpu else 4)
    if has is not None and needs > has:
        raise MemoryError(
            f"[model] describes at least {parameters:,} parameters, which take {needs / 2**30:,.0f} GiB, and this "
            f"machine has {has / 2**30:,.0f} GiB"
        )


def memory_bytes() -> int | None:
    """The memory of this machine in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def set_manner(section: ModelRecipe, model: Any, tokenizer: Any) -> None:
    """Give the tokenizer and the model the template, length and temperature of answers that the section names.

    A model that starts from a checkpoint keeps the template of its own tokenizer, where the other has none.
    """
    if section.template is not None:
        tokenizer.chat_template = chat_template(section.template)
    elif section.pretrained is not None and tokenizer.chat_template is None:
        with suppress(ValueError):  # no tokenizer is saved beside that model
            tokenizer.chat_template = load_model_tokenizer(section.pretrained).chat_template
    config = model.generation_config
    if section.max_new_tokens is not None:
        config.max_new_tokens = section.max_new_tokens
    if section.temperature is not None:
        config.do_sample = section.temperature > 0
        config.temperature = section.temperature if config.do_sample else None


def needs_tokenizer(section: ModelRecipe) -> bool:
    """Whether the shape of the model depends on the tokenizer: a new one without a vocab_size."""
    return section.pretrained is None and "vocab_size" not in section.options


def model_config(recipe: Recipe, tokenizer: Any) -> Any:
    """The config that [model] describes; vocabulary and special tokens of a new model come from the tokenizer.

    `tokenizer` may be None where the shapes alone are of interest and the model does not need it (`needs_tokenizer`).
    """
    section, config = recipe.model, None
    options = config_options(section.options)
    if section.pretrained is not None:
        config = load_config(section.pretrained, **options)
    if tokenizer is None:
        return _new_config(section, options) if config is None else config
    size = options.setdefault("vocab_size", len(tokenizer)) if config is None else config.vocab_size
    if isinstance(size, int) and size < len(tokenizer):
        raise ValueError(
            f"the model's vocab_size is {size}, but the tokenizer {recipe.data.tokenizer!r} has {len(tokenizer)} "
            "tokens; leave model.vocab_size out or choose the tokenizer the model was trained with"
        )
    if config is not None:
        return config
    check_integer("model.num_hidden_layers", options.get("num_hidden_layers", 1), 1, MOST_LAYERS)
    options = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")} | options
    return _new_config(section, options)


def _new_config(section: ModelRecipe, options: dict[str, Any]) -> Any:
    if section.architecture is not None:
        config = architecture_config(section.architecture, options)
    else:
        config = TitansConfig.preset(section.preset, variant=section.variant, **options)
    if section.parameters is not None:
        fit_parameters(config, section.parameters)
    return config


def config_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a section as fields of a config; `window_size = "all"` stands for None, which TOML lacks."""
    return options | ({"window_size": None} if options.get("window_size") == "all" else {})
