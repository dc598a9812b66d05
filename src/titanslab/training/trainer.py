"""The Hugging Face Trainer with this project's data order, checkpoints, weight decay and watchdog."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from titanslab.files import naming
from titanslab.models.config import TitansConfig
from titanslab.training import state_files
from titanslab.training.callbacks import CheckpointCallback
from titanslab.training.jumps import GradientJumps
from titanslab.training.muon import MuonWithAdamW, matrix_names
from titanslab.training.recipe import Recipe, TrainingRecipe
from titanslab.training.resume import check_weights as check_weight_files
from titanslab.training.resume import fault_inside
from titanslab.training.sharding import check_launcher, is_sharded, shard, whole_weights
from titanslab.training.sources import RunData
from titanslab.training.trackers import check_trackers, place_logs
from titanslab.training.watchdog import check_step, check_weights

INPUTS = ("input_ids", "past_values")  # of which a batch has one; its numbers are the tokens of a log


class TitansTrainer(Trainer):
    """A Trainer whose runs can be stopped at any moment and resumed loss for loss, and that stops on a NaN.

    The dataset decides the order of the rows, so the sampler is sequential. Optimiser, schedule and random state are
    kept as safetensors and JSON, see `state_files`; under DeepSpeed that library keeps its own.

    Args:
        shards: with several processes, divide the training state among them (`sharding`).
        muon: the optimiser is `MuonWithAdamW` and not AdamW.
        write_cost_warmup: steps over which the model's `memory_write_cost` rises from 0 to its full value. With the
            full price from the first step, the write gates close before the memory has learned to be of use.

    All other arguments are those of `Trainer`.
    """

    def __init__(
        self, *args: Any, shards: bool = False, muon: bool = False, write_cost_warmup: int = 0, **kwargs: Any
    ) -> None:
        self.muon, self.write_cost_warmup, self.jumps = muon, write_cost_warmup, GradientJumps()
        super().__init__(*args, **kwargs)
        self.shards = shards and self.args.world_size > 1

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset) if hasattr(dataset, "__len__") else None

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay: matrices, never norms, biases, embeddings or gates of a memory."""
        own: Any = getattr(model, "decay_parameter_names", None)
        if own is not None:
            return list(own())
        return [
            f"{module_name}.{name}" if module_name else name
            for module_name, module in model.named_modules()
            if not isinstance(module, nn.Embedding) and "norm" not in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim >= 2
        ]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """AdamW as the Trainer makes it, or `MuonWithAdamW`; sharded parameters are divided before.

        The Trainer has given the model the weights of a checkpoint by then, and has moved it to the device.
        """
        if self.shards and self.optimizer is None:
            assert self.model is not None
            shard(self.model, self.args.device)
            # a sharded model exchanges its gradients itself: it gets autocast and no DDP
            prepare: Any = self.accelerator
            prepare.prepare_model = partial(prepare.prepare_model, evaluation_mode=True)
        if not self.muon or self.optimizer is not None:
            return super().create_optimizer(*args, **kwargs)
        if not self.own_state:
            raise ValueError('training.optimizer is "muon", which DeepSpeed does not run; use "adamw"')
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
        share = {}
        if self.state.global_step < self.write_cost_warmup:
            share = {"write_cost_share": self.state.global_step / self.write_cost_warmup}
        loss = super().training_step(model, {**inputs, **share}, *args, **kwargs)
        full = self.accelerator.sync_gradients
        norms = check_step(model, loss, inputs, self.state.global_step + 1, gradients=full)
        if norms is not None and self.is_world_process_zero():
            self.jumps.look(model, norms, self.state.global_step + 1)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        assert self.model is not None
        check_weights(self.model, self.state.global_step)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with naming(folder):
            if self.is_world_process_zero() and folder.exists():
                shutil.rmtree(folder)  # a damaged one, perhaps with the files of another number of processes
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model as one ordinary model folder; the weights of a sharded one come together for it."""
        assert self.model is not None
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        weights = whole_weights(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        """Write the model with `use_cache = True` in its config; the Trainer sets it to False while it trains."""
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
        """Tokens of this micro-batch on all devices, whose rows may differ in length."""
        count = next(inputs[name].numel() for name in INPUTS if name in inputs)
        if self.accelerator.num_processes == 1:
            return count
        counts: Any = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.sum())

    @property
    def own_state(self) -> bool:
        """Whether weights and states are files of this project, and not of DeepSpeed."""
        return not self.is_deepspeed_enabled

    def fault_inside(self, checkpoint: Path) -> str:
        """Why a checkpoint cannot be one of this run, in words; "" if it can."""
        return fault_inside(checkpoint, self.model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.own_state:
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            part = (self.args.process_index, self.args.world_size) if self.shards else (0, 1)
            if self.shards or self.args.should_save:
                Path(output_dir).mkdir(parents=True, exist_ok=True)
                state_files.save_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler, *part)
            if self.args.should_save:
                rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
                state_files.save_batch(Path(output_dir), self.args.world_size, rows)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.own_state:  # the Trainer would take a pickle where the safetensors are missing
            check_weight_files(Path(resume_from_checkpoint), self.model if model is None else model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.own_state:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            state_files.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if not self.own_state:  # no precision of a recipe scales the loss, and the Trainer's file is a pickle
            super()._load_scaler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        state_files.save_random_state(self._random_state_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = len(list(Path(checkpoint).glob("random_state_*.json")))
        if saved == 0:
            raise ValueError(f"checkpoint {checkpoint!r} has no random state; delete it to resume from the one before")
        # more processes than before: the others repeat the states, which draw nothing that a loss depends on
        state_files.load_random_state(self._random_state_file(checkpoint, self.args.process_index % saved))

    def _random_state_file(self, folder: str, index: int | None = None) -> Path:
        return Path(folder) / f"random_state_{self.args.process_index if index is None else index}.json"


def make_trainer(
    recipe: Recipe,
    model: Any,
    data: RunData,
    output: Path,
    callbacks: list[TrainerCallback],
    kind: Callable[..., TitansTrainer] = TitansTrainer,
) -> TitansTrainer:
    """The Trainer of a recipe, of the class `kind`, made without touching the run folder `output`.

    With training.compile, the blocks of `model` are compiled in place. `callbacks` run besides those that every run
    has. Raises ValueError for rows that the model cannot read and for a tracker that cannot be used here.
    """
    settings, model_type = recipe.training, model.config.model_type
    collate = data.collator(model_type)
    if settings.compile:
        compile_blocks(model)
    check_trackers(settings.report_to)
    check_launcher()
    trainer = kind(
        model=model,
        args=training_arguments(recipe, output, data.labels, scored=data.compute_metrics is not None),
        train_dataset=data.run_rows(settings.steps, settings.rows(devices(settings))),
        eval_dataset=data.validation,
        data_collator=collate,
        processing_class=data.tokenizer,
        callbacks=[*callbacks, CheckpointCallback(settings.keep_checkpoints)],
        compute_metrics=data.compute_metrics,
        shards=settings.sharding == "fsdp",
        muon=settings.optimizer == "muon",
        write_cost_warmup=settings.write_cost_warmup if model_type == TitansConfig.model_type else 0,
    )
    trainer.remove_callback(PrinterCallback)
    place_logs(trainer, output)
    return trainer


def compile_blocks(model: Any) -> None:
    """Compile each block of the model on its own, in place: one compilation serves all blocks of a kind."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile()


def devices(settings: TrainingRecipe) -> int:
    """The number of processes that share the rows of a step."""
    return PartialState(cpu=settings.cpu).num_processes


def training_arguments(
    recipe: Recipe, output: Path, labels: str = "labels", *, scored: bool = False
) -> TrainingArguments:
    """The Trainer's arguments for a recipe; checkpoints go to output/checkpoints.

    `labels`: see `RunData`. `scored`: a validation computes scores of the model's outputs, besides the loss.
    """
    settings = recipe.training
    # Later releases of transformers renamed the field, and the old name warns there.
    names = ("activation_checkpointing", "gradient_checkpointing")
    name = next(name for name in names if hasattr(TrainingArguments, name))
    renamed: dict[str, Any] = {name: settings.gradient_checkpointing}
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.eval_batch_size or settings.batch_size,
        gradient_accumulation_steps=settings.passes(devices(settings)),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.gradient_clip,
        optim="adamw_torch",
        seed=settings.seed,
        full_determinism=settings.deterministic,
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="no" if settings.eval_every is None else "steps",
        eval_steps=settings.eval_every,
        save_steps=settings.save_every,
        bf16=settings.precision == "bf16",
        use_cpu=settings.cpu or not torch.accelerator.is_available(),
        report_to=settings.report_to or "none",
        run_name=output.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[labels],
        prediction_loss_only=not scored,
        dataloader_drop_last=False,  # all rows of validation count; training rows fill their batches
        dataloader_pin_memory=torch.cuda.is_available() and not settings.cpu,
        ddp_find_unused_parameters=False,
        log_level="error",
        log_level_replica="error",
        **renamed,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs take one process each under torchrun, never DataParallel
    return arguments
