"""The Trainer of documents in order: what a model has read goes on from step to step, and into checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titanslab.training.carry import Carry
from titanslab.training.trainer import TitansTrainer


class CarryTrainer(TitansTrainer):
    """A `TitansTrainer` for the batches of `collate_documents`.

    Args:
        carry: makes the `Carry` of a model, one to train with and one for each validation.

    All other arguments are those of `TitansTrainer`.
    """

    def __init__(self, *args: Any, carry: Callable[[Any], Carry], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.make_carry = carry
        self.carry, self.held = carry(self.model), carry(self.model)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, self.carry.enter(self._prepare_inputs(inputs)), *args, **kwargs)
        self.carry.leave()
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.held = self.make_carry(self.model)
        return super().evaluate(*args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        found = super().prediction_step(model, self.held.enter(self._prepare_inputs(inputs)), *args, **kwargs)
        self.held.leave()
        return found

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.carry.save(self._carry_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        saved, now = len(list(Path(checkpoint).glob("memories_*.safetensors"))), self.args.world_size
        if saved not in (0, now):
            raise ValueError(
                f"checkpoint {checkpoint!r} holds the memories of {saved} processes, each with documents of its own, "
                f"and this run has {now}; resume with {saved}"
            )
        self.carry.load(self._carry_file(checkpoint))

    def _carry_file(self, folder: str) -> Path:
        return Path(folder) / f"memories_{self.args.process_index}.safetensors"
