"""The best validation of a run: its weights are kept, and a run without progress ends."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from titanslab.documents import read_json, reason
from titanslab.files import write_whole

WEIGHTS, FACTS = "best.safetensors", "best.json"
FIX = "start the run anew, or resume it with --set training.keep=last"
LOSS = "eval_loss"  # the score that is best where it is least


class Best(Struct):
    """best.json: the step of the best validation, the name of its score, and the score."""

    step: Annotated[int, Meta(ge=0)]
    name: str
    score: float


class BestValidation(TrainerCallback):
    """Keeps the weights of the best validation, and ends a run after `patience` validations without a better one.

    The validations of a resumed run are those in the Trainer's history, so that it ends at the same step.

    Args:
        folder: the run folder, for `WEIGHTS` and `FACTS`; None keeps no weights.
        score: the name of a value that each validation logs: `LOSS`, or one that is best where it is greatest.
        patience: None = the run never ends early.
    """

    def __init__(self, folder: Path | None, score: str = LOSS, patience: int | None = None) -> None:
        self.folder, self.score, self.patience = folder, score, patience
        self.ended = False

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        sign = -1.0 if self.score == LOSS else 1.0
        scores = [line[self.score] for line in state.log_history if self.score in line]
        if not scores:
            return
        best = max(range(len(scores)), key=lambda i: (sign * scores[i], -i))
        if best == len(scores) - 1 and self.folder is not None and state.is_world_process_zero:
            save_best(self.folder, model, Best(state.global_step, self.score, scores[-1]))
        if self.patience is not None and len(scores) - 1 - best >= self.patience:
            self.ended = control.should_training_stop = True


def save_best(folder: Path, model: Any, facts: Best) -> None:
    """Write the weights of the model and the facts about them."""
    inner = getattr(model, "module", model)  # of DistributedDataParallel
    weights = {name: p.detach().to("cpu", copy=True).contiguous() for name, p in inner.named_parameters()}
    weights |= {name: b.detach().to("cpu", copy=True).contiguous() for name, b in inner.named_buffers()}
    write_whole(folder / WEIGHTS, lambda temporary: save_file(weights, temporary))
    facts_text = {"step": facts.step, "name": facts.name, "score": facts.score}
    write_whole(folder / FACTS, json.dumps(facts_text) + "\n")


@torch.no_grad()
def take_best(folder: Path, model: Any) -> Best | None:
    """Give the model the weights of the best validation; None where there was no validation."""
    if not (folder / FACTS).exists():
        return None
    facts = read_json(folder / FACTS, Best, fix=FIX)
    inner = getattr(model, "module", model)
    own = dict(inner.named_parameters()) | dict(inner.named_buffers())
    try:
        weights = load_file(folder / WEIGHTS)
        fault = "" if own.keys() == weights.keys() else "it holds other weights than the model has"
    except (SafetensorError, OSError) as error:
        fault = reason(error, 200)
    if fault:
        raise ValueError(
            f"{str(folder / WEIGHTS)!r}, the weights of the best validation, cannot be read: {fault}; {FIX}"
        )
    for name, value in own.items():
        value.copy_(weights[name])
    return facts
