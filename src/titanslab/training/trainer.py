"""The Hugging Face Trainer with this project's data order, checkpoints, weight decay and watchdog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback

from titanslab.runs import checkpoints
from titanslab.training import state_files
from titanslab.training.muon import MuonWithAdamW, matrix_names
from titanslab.training.watchdog import check_step


class TitansTrainer(Trainer):
    """A Trainer whose runs can be stopped at any moment and resumed loss for loss, and that stops on a NaN.

    The dataset decides the order of the rows, so the sampler is sequential. Optimiser, schedule and random
    state are kept as safetensors and JSON; under FSDP or DeepSpeed those libraries keep their own. With `muon`, set
    before training, the optimiser is `MuonWithAdamW`.
    """

    muon = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset) if hasattr(dataset, "__len__") else None

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay: matrices, never norms, biases, gates or embeddings."""
        own = getattr(model, "decay_parameter_names", None)
        return list(own()) if own is not None else decay_parameter_names(model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """AdamW as the Trainer makes it, or `MuonWithAdamW`; ValueError for the latter on sharded parameters."""
        if not self.muon or self.optimizer is not None:
            return super().create_optimizer(*args, **kwargs)
        if not self._own_state:
            raise ValueError(
                'training.optimizer is "muon", which needs whole matrices on each device; use "adamw" under FSDP or '
                "DeepSpeed"
            )
        adamw = super().create_optimizer(*args, **kwargs)
        assert self.model is not None
        names = matrix_names(self.model)
        matrices = [p for n, p in self.model.named_parameters() if n in names and p.requires_grad]
        self.optimizer = MuonWithAdamW(
            adamw.param_groups, matrices, lr=self.args.learning_rate, weight_decay=self.args.weight_decay
        )
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        inputs = self._prepare_inputs(inputs)
        self.state.num_input_tokens_seen += self._tokens(inputs)
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        full = self.accelerator.sync_gradients
        check_step(model, loss, inputs, self.state.global_step + 1, gradients=full)
        return loss

    def _save(self, *args: Any, **kwargs: Any) -> None:
        """Write the model with `use_cache` on: Trainer turns it off, and those who load the model would find it so."""
        config: Any = getattr(self.model, "config", None)
        if not hasattr(config, "use_cache"):
            super()._save(*args, **kwargs)
            return
        training, config.use_cache = config.use_cache, True
        try:
            super()._save(*args, **kwargs)
        finally:
            config.use_cache = training

    def _tokens(self, inputs: dict[str, Any]) -> int:
        """Tokens of this micro-batch on all devices; rows of one need not be as long as those of another."""
        count = inputs["input_ids"].numel()
        if self.accelerator.num_processes == 1:
            return count
        counts: Any = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.sum())

    @property
    def _own_state(self) -> bool:
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._own_state:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert self.optimizer is not None
            assert self.lr_scheduler is not None
            state_files.save_optimizer(Path(output_dir), self.optimizer.state_dict())
            state_files.save_scheduler(Path(output_dir), self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._own_state:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.optimizer.load_state_dict(state_files.load_optimizer(Path(checkpoint)))
        self.lr_scheduler.load_state_dict(state_files.load_scheduler(Path(checkpoint)))

    def _save_rng_state(self, output_dir: str) -> None:
        state_files.save_random_state(self._random_state_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        found = len(list(Path(checkpoint).glob("random_state_*.json")))
        if found != self.args.world_size:
            raise ValueError(
                f"checkpoint {checkpoint!r} was written by {found} processes, now there are "
                f"{self.args.world_size}; resume with as many as the run was started with"
            )
        state_files.load_random_state(self._random_state_file(checkpoint))

    def _random_state_file(self, folder: str) -> Path:
        return Path(folder) / f"random_state_{self.args.process_index}.json"


class CheckpointCallback(TrainerCallback):
    """Marks a checkpoint as whole once every process has written its part, then drops the oldest ones."""

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            checkpoints.mark_complete(folder / f"checkpoint-{state.global_step}")
            checkpoints.keep_newest(folder, self.keep)


def decay_parameter_names(model: nn.Module) -> list[str]:
    """For models of transformers: what has two or more dimensions, outside embeddings and norms."""
    names = []
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                names.append(f"{module_name}.{name}" if module_name else name)
    return names
