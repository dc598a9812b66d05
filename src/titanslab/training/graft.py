"""The data and the model of a recipe with [graft]."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from titanslab.data import load_tokenizer
from titanslab.runs.bases import base_folder
from titanslab.runs.loading import load_base, load_config, load_model_tokenizer
from titanslab.training.gate_ramp import draw_outputs
from titanslab.training.graft_sections import BASE, GraftRecipe
from titanslab.training.in_order import read_in_order
from titanslab.training.recipe import Recipe
from titanslab.training.sources import Reading, RunData


def open_graft(
    recipe: Recipe, processes: int, reading: Reading, say: Callable[[str], None]
) -> tuple[RunData, Callable[[], Any]]:
    """The documents of a recipe in order, and a function that makes the grafted model.

    Args:
        processes: that share the rows of a step.
        reading, say: see `open_recipe`.

    Raises:
        FileNotFoundError, ValueError: the base or the data are missing, unreadable, too little, or do not fit.
    """
    section, data, training = recipe.model, recipe.data, recipe.training
    folder = base_folder(section.base)
    config: Any = load_config(folder)
    tokenizer = load_model_tokenizer(folder) if data.tokenizer == BASE else load_tokenizer(data.tokenizer)
    size = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(size, int) and size < len(tokenizer):
        raise ValueError(
            f"data.tokenizer = {data.tokenizer!r} has {len(tokenizer)} tokens and the base {size}; leave it out for "
            "the base's own"
        )
    run = read_in_order(data, training, tokenizer, processes, reading, say, section.pieces)
    return run, partial(build_graft, section)


def build_graft(section: GraftRecipe) -> Any:
    """The base with its memories, of whose parameters those that are trained have a gradient."""
    from titanslab.graft.attach import graft

    model: Any = load_base(section.base).float()
    if section.lora:
        model = add_lora(model, section)
    model = graft(model, section.config())
    if section.gate_ramp:
        draw_outputs(model)
    if section.train == "all":
        model.requires_grad_(True)
    return model.train()


def add_lora(model: Any, section: GraftRecipe) -> Any:
    """The model with LoRA's matrices, wrapped by peft; ImportError in one line where peft is missing."""
    try:
        from peft import LoraConfig, get_peft_model
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES
    except ImportError as error:
        raise ImportError(
            f"graft.lora = {section.lora} needs peft: pip install 'titans-lab[peft]', or leave graft.lora out"
        ) from error
    options: Any = {"r": section.lora, "lora_alpha": section.lora_alpha or 2 * section.lora}
    targets = section.lora_targets
    if targets is None and model.config.model_type not in CHOICES:
        targets = _attention_maps(model) or None
    try:
        return get_peft_model(model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **options))
    except ValueError as error:
        raise ValueError(f"graft.lora: {' '.join(str(error).split())[:300]}; name them in graft.lora_targets") from None


def _attention_maps(model: nn.Module) -> list[str]:
    """The names of the linear maps in the attention of a model."""
    from titanslab.graft.structure import find_decoder

    inside = {m for attention in find_decoder(model).attentions if attention is not None for m in attention.modules()}
    return [name for name, module in model.named_modules() if module in inside and isinstance(module, nn.Linear)]
