"""The lines of `titans info --recipe`: what training by a recipe takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from titanslab.cli.sizes import as_bytes, short

if TYPE_CHECKING:
    from titanslab.training.recipe import Recipe

NAMES = {
    "parameters": "weights, fp32",
    "gradients": "gradients, fp32",
    "optimizer": "AdamW's moments, fp32",
    "exchange": "exchange between GPUs",
    "casts": "bf16 copies of weights",
    "activations": "activations",
    "states": "states of the memories",
    "logits": "logits of the loss",
}


def plan_lines(recipe: Recipe, gpus: int, mfu: float) -> Iterator[str]:
    """The lines, in their order; ValueError where `gpus` cannot share the rows of a step evenly."""
    from titanslab.training.plan import TRAINING, make_plan

    plan, settings, length = make_plan(recipe, gpus), recipe.training, recipe.data.sequence_length
    yield (
        f"run        {settings.steps:,} steps of {plan.rows:,} rows of {length:,} tokens: {plan.tokens / 1e9:.3g} "
        f"billion tokens; {_many(gpus, 'GPU')} x {_many(plan.passes, 'pass', 'passes')} x "
        f"{_many(settings.batch_size, 'row')}"
    )
    if plan.flops_per_token is None or plan.memory is None or plan.other is None:
        yield f"cost       {plan.parameters:,} parameters; FLOPs and memory are known for Titans models alone"
        return
    yield f"training   {short(plan.flops_per_token)}FLOPs per token, {TRAINING} times those of a forward pass"
    over = "" if gpus == 1 else f", {settings.sharding} over {gpus}"
    sort = "with" if settings.gradient_checkpointing else "without"
    yield f"memory     {as_bytes(plan.memory.total)} a GPU, {sort} gradient checkpointing{over}"
    for name, words in NAMES.items():
        if size := getattr(plan.memory, name):
            yield f"           {as_bytes(size)}: {words}"
    sort = "without" if settings.gradient_checkpointing else "with"
    yield f"           {as_bytes(plan.other.total)} {sort} gradient checkpointing"
    hours = plan.hours(gpus, mfu)
    yield (
        f"time       {_hours(hours)} on {gpus} H100 at {100 * mfu:g} % of their 989 TFLOP/s in bf16; the share is that "
        "of --mfu, not measured"
    )


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def _hours(hours: Any) -> str:
    return (
        f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"
    )
