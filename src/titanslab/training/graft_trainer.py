"""The Trainer of a graft: documents in order with carried memories, and checkpoints of the trained weights alone."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from titanslab.documents import reason
from titanslab.files import write_whole
from titanslab.graft import save_base
from titanslab.graft.structure import NAME
from titanslab.runs.bases import OWN_BASE
from titanslab.training.carry_trainer import CarryTrainer
from titanslab.training.gate_ramp import GateRamp
from titanslab.training.graft_carry import GraftCarry
from titanslab.training.graft_sections import GraftRecipe
from titanslab.training.resume import first_fault

WEIGHTS = "trained.safetensors"  # in a checkpoint: every parameter with a gradient, under its name in the model
PROJECTIONS = tuple(f"{name}_proj.weight" for name in "qkvgo")


class GraftTrainer(CarryTrainer):
    """A `CarryTrainer` of a grafted model.

    Args:
        section: [graft] of the recipe.

    All other arguments are those of `TitansTrainer`.
    """

    def __init__(self, *args: Any, section: GraftRecipe, **kwargs: Any) -> None:
        super().__init__(*args, carry=lambda model: GraftCarry(model, section.carry), **kwargs)
        self.section = section
        if section.gate_ramp:
            self.add_callback(GateRamp(self.model, section.gate_ramp))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the memories, the tokenizer and LoRA; a base that was trained too stands in the folder `base`.

        A checkpoint of such a run holds its weights alone.
        """
        folder = Path(str(output_dir or self.args.output_dir))
        if self.section.train != "all":
            super().save_model(str(folder), _internal_call)
        elif _internal_call:
            folder.mkdir(parents=True, exist_ok=True)
        elif self.args.should_save:
            model: Any = self.model
            save_base(model, folder / OWN_BASE)
            model.config._name_or_path = str((folder.parent / OWN_BASE).resolve())  # where the run puts it
            super().save_model(str(folder), _internal_call)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay: of a memory its projections alone, not gates, convolutions and M_0."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if NAME not in name.split(".") or name.endswith(PROJECTIONS)]

    def fault_inside(self, checkpoint: Path) -> str:
        return first_fault(checkpoint, lambda: self._check_weights(checkpoint))

    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters with a gradient, by name."""
        assert self.model is not None
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def _check_weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """The weights in a checkpoint; ValueError unless they are those of the model."""
        path = checkpoint / WEIGHTS
        if not path.exists():
            raise ValueError(f"{WEIGHTS} is missing")
        try:
            weights, own = load_file(path), self.trained()
        except SafetensorError as error:
            raise ValueError(f"{WEIGHTS} is not a whole safetensors file: {reason(error, 200)}") from None
        wrong = next((n for n in weights.keys() | own if n not in own or n not in weights), None)
        wrong = wrong or next((n for n, w in weights.items() if w.shape != own[n].shape), None)
        if wrong is not None:
            raise ValueError(f"{WEIGHTS} and the model differ in {wrong!r}")
        return weights

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = self._check_weights(Path(resume_from_checkpoint))
        for name, parameter in self.trained().items():
            parameter.copy_(weights[name])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            weights = {name: p.to("cpu", copy=True).contiguous() for name, p in self.trained().items()}
            write_whole(Path(output_dir) / WEIGHTS, lambda temporary: save_file(weights, temporary))
