"""The documents and the model of a recipe with [graft]."""

from collections.abc import Callable
from functools import partial
from typing import Any

from titanslab.data import load_tokenizer, padding_id
from titanslab.data.documents import DocumentRows, OnePass, WithTask, collate_documents
from titanslab.runs.bases import base_folder
from titanslab.runs.loading import load_base, load_config, load_model_tokenizer
from titanslab.training.gate_ramp import draw_outputs
from titanslab.training.graft_sections import BASE, GraftDataRecipe, GraftRecipe
from titanslab.training.recipe import Recipe
from titanslab.training.sources import Reading, RunData, task_stream


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
    tokens = reading.tokens(data, "train", tokenizer)
    lines = training.batch_size * processes
    orders = {"pieces": section.pieces, "seed": training.seed}
    rows: Any = DocumentRows(tokens, data.sequence_length, lines, shuffle=data.shuffle, **orders)
    say(
        f"{tokens.documents:,} documents of {len(tokens) // max(1, tokens.documents):,} tokens on average, read in "
        f"order by {lines} lines in pieces of {data.sequence_length:,}"
    )
    if data.task is not None:
        rows = WithTask(rows, task_stream(data, tokenizer, training.seed), data.task_share)
    held, bytes_per_token = None, None
    if data.validation is not None:
        found = reading.tokens(data, "validation", tokenizer)
        held_lines = (training.eval_batch_size or training.batch_size) * processes
        held = OnePass(held_rows(found, data, held_lines), data.validation_samples)
        bytes_per_token = found.text_bytes / max(1, len(found) - found.documents)
    collate = partial(collate_documents, pad_id=padding_id(tokenizer))
    run = RunData(rows, lambda _: collate, tokenizer, len(rows), held, bytes_per_token)
    return run, partial(build_graft, section)


def held_rows(tokens: Any, data: GraftDataRecipe, lines: int) -> DocumentRows:
    """The rows to validate with; ValueError names the key for too little text."""
    try:
        return DocumentRows(tokens, data.sequence_length, lines, shuffle=False)
    except ValueError as error:
        raise ValueError(str(error).replace("data.train", "data.validation")) from None


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
    except ImportError as error:
        raise ImportError(
            f"graft.lora = {section.lora} needs peft: pip install 'titans-lab[peft]', or leave graft.lora out"
        ) from error
    options: Any = {"r": section.lora, "lora_alpha": section.lora_alpha or 2 * section.lora}
    try:
        return get_peft_model(model, LoraConfig(target_modules=section.lora_targets, task_type="CAUSAL_LM", **options))
    except ValueError as error:
        raise ValueError(f"graft.lora: {' '.join(str(error).split())[:300]}; name them in graft.lora_targets") from None
