"""One training run: a recipe in, a run folder out.

The folder holds recipe.toml (every default filled in), versions.json, metrics.jsonl, checkpoints/, and at
the end the model with its tokenizer and result.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from titanslab.files import put_in_place, write_whole
from titanslab.runs import checkpoints
from titanslab.runs.loading import load_config, load_model
from titanslab.training.architecture import (
    TITANS,
    architecture_config,
    check_one_document_a_row,
    without_documents,
)
from titanslab.training.baselines import start_gated_deltanet
from titanslab.training.recipe import ModelRecipe, Recipe, load_recipe

RECIPE, VERSIONS, RESULT = "recipe.toml", "versions.json", "result.json"
# What may change on resuming, because no loss depends on it.
FREE_KEYS = {
    "training": {"log_every", "save_every", "keep_checkpoints", "report_to", "eval_batch_size"},
}

Say = Callable[[str], None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def train(recipe: Recipe, output: str | Path, *, resume: bool = False, say: Say = _say) -> dict[str, Any]:
    """Train what the recipe says into the folder `output`; returns what result.json holds.

    With `resume`, an interrupted run goes on from its last whole checkpoint and gives the same losses as
    one that was never stopped. Everything that can be checked is checked before the folder is made or
    changed. Raises ValueError when the folder holds something else, and NonFiniteError when training breaks
    down.
    """
    from accelerate import PartialState
    from accelerate.utils import set_seed

    output = Path(output)
    settings = recipe.training
    check_output(output, recipe, resume)
    if resume and (output / RESULT).exists():
        say(f"the run in {output} is finished; nothing to resume")
        return json.loads((output / RESULT).read_text())
    world = PartialState(cpu=settings.cpu)
    world.wait_for_everyone()
    if not world.is_main_process:
        say = _quiet
    set_seed(settings.seed)
    trainer, metrics, line = _build(recipe, output, world.num_processes, say)
    world.wait_for_everyone()
    if world.is_main_process:
        _open_folder(output, recipe, resume)
    world.wait_for_everyone()
    checkpoint = _checkpoint_to_resume(output, say) if resume else None
    if resume and world.is_main_process:
        from titanslab.training.callbacks import METRICS, truncate_metrics

        truncate_metrics(output / METRICS, checkpoints.step_of(checkpoint) if checkpoint else 0)
    world.wait_for_everyone()
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        line.close()
    result = {
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "loss": metrics.last_loss,
        "seconds": round(time.perf_counter() - start, 1),
        "resumed_from": checkpoints.step_of(checkpoint) if checkpoint else None,
    }
    _save_final(trainer, output, result)
    return result


def check_output(output: Path, recipe: Recipe | None, resume: bool) -> None:
    """Raise ValueError unless `output` is new or empty, or with `resume` a run of this recipe."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {str(output)!r} is a file; give a folder")
    used = output.is_dir() and any(output.iterdir())
    if not resume:
        if used:
            kind = (
                "a finished run" if (output / RESULT).exists() else "a run" if (output / RECIPE).exists() else "files"
            )
            more = "add --resume to go on with it, or " if kind == "a run" else ""
            raise ValueError(f"output folder {str(output)!r} already holds {kind}; {more}give another --output")
        return
    if not (output / RECIPE).exists():
        raise ValueError(f"output folder {str(output)!r} holds no run to resume (no {RECIPE}); leave --resume out")
    if recipe is not None:
        _check_same(load_recipe(output / RECIPE), recipe, output)


def _check_same(old: Recipe, new: Recipe, output: Path) -> None:
    before, after = old.sections(), new.sections()
    for section, values in after.items():
        for key in sorted(values.keys() | before[section].keys()):
            was, now = before[section].get(key), values.get(key)
            if was != now and key not in FREE_KEYS.get(section, ()):
                raise ValueError(
                    f"the run in {str(output)!r} was started with {section}.{key} = {was!r}, now it is "
                    f"{now!r}; resume with "
                    "the same value, or start another run (model.pretrained can name this one)"
                )


def _build(recipe: Recipe, output: Path, world_size: int, say: Say) -> tuple[Any, Any, Any]:
    """Everything that training needs, made without touching the run folder."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from titanslab.data import RunRows, collate, load_tokenizer, padding_id
    from titanslab.progress import bar
    from titanslab.training.callbacks import METRICS, MetricsWriter, ProgressLine, SaveAtLogs
    from titanslab.training.sources import training_stream, validation_rows
    from titanslab.training.trainer import CheckpointCallback, TitansTrainer
    from titanslab.training.write_cost import WriteCostWarmup

    data, settings = recipe.data, recipe.training
    tokenizer = load_tokenizer(data.tokenizer)
    rows_per_step = settings.batch_size * settings.accumulation * world_size
    with bar("reading data.train", "bytes") as progress:
        stream: Any = training_stream(data, tokenizer, seed=settings.seed, rows_needed=rows_per_step, progress=progress)
    if not data.streaming:
        stream = RunRows(stream, settings.steps * rows_per_step)
    validation = None
    if data.validation is not None:
        with bar("reading data.validation", "bytes") as progress:
            validation = validation_rows(data, tokenizer, progress)
    model = build_model(recipe, tokenizer)
    check_one_document_a_row(model.config.model_type, data)
    batch = partial(collate, pad_id=padding_id(tokenizer))
    say(f"model: {sum(p.numel() for p in model.parameters()):,} parameters")
    if settings.compile:
        compile_blocks(model)
    arguments = training_arguments(recipe, output)
    _check_trackers(settings.report_to)
    trainer = TitansTrainer(
        model=model,
        args=arguments,
        train_dataset=stream,
        eval_dataset=None if validation is None else validation.rows,
        data_collator=batch if model.config.model_type == TITANS else lambda rows: without_documents(batch(rows)),
        processing_class=tokenizer,
    )
    trainer.muon = settings.optimizer == "muon"
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    bytes_per_token = None if validation is None else validation.bytes_per_token
    metrics = MetricsWriter(output / METRICS, bytes_per_token)
    line = ProgressLine(metrics)
    for callback in (SaveAtLogs(), metrics, line, CheckpointCallback(settings.keep_checkpoints)):
        trainer.add_callback(callback)
    if settings.write_cost_warmup and model.config.model_type == TITANS:
        trainer.add_callback(WriteCostWarmup(settings.write_cost_warmup))
    return trainer, metrics, line


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """The model of [model] with the tokenizer's vocabulary: new from a preset, or from a checkpoint."""
    from titanslab.models.modeling import TitansForCausalLM

    section = recipe.model
    if section.pretrained is not None:
        model: Any = load_model(section.pretrained, **_options(section)).float()
    elif section.architecture is not None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(model_config(recipe, tokenizer)).float()
        if section.start is not None:
            start_gated_deltanet(model, section.start)
    else:
        model = TitansForCausalLM(model_config(recipe, tokenizer))
    _check_vocabulary(model.config.vocab_size, recipe, tokenizer)
    return model


def model_config(recipe: Recipe, tokenizer: Any) -> Any:
    """The config that [model] describes, its vocabulary and special tokens taken from the tokenizer."""
    from titanslab.models.config import TitansConfig

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
    """The section's fields of a config; TOML has no None, so a window of all tokens is written "all"."""
    every = section.options.get("window_size") == "all"
    return section.options | ({"window_size": None} if every else {})


def _check_vocabulary(size: Any, recipe: Recipe, tokenizer: Any) -> None:
    if isinstance(size, int) and size < len(tokenizer):
        raise ValueError(
            f"the model's vocab_size is {size}, but the tokenizer {recipe.data.tokenizer!r} has "
            f"{len(tokenizer)} "
            "tokens; leave model.vocab_size out or choose the tokenizer the model was trained with"
        )


def compile_blocks(model: Any) -> None:
    """Compile each block of the model on its own, in place: one compilation serves all blocks of a kind."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile()


def training_arguments(recipe: Recipe, output: Path) -> Any:
    """The Trainer's arguments for a recipe; checkpoints go to output/checkpoints."""
    from transformers import TrainingArguments

    settings = recipe.training
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    # Later releases of transformers renamed it, and the old name warns there.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    renamed: dict[str, Any] = {checkpointing: settings.gradient_checkpointing}
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.eval_batch_size or settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.gradient_clip,
        optim="adamw_torch",
        seed=settings.seed,
        data_seed=settings.seed,
        full_determinism=settings.deterministic,
        logging_strategy="steps",
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="no" if settings.eval_every is None else "steps",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=None,
        bf16=settings.precision == "bf16",
        use_cpu=settings.cpu or not torch.accelerator.is_available(),
        report_to=settings.report_to or "none",
        run_name=output.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available() and not settings.cpu,
        ddp_find_unused_parameters=False,
        log_level="error",
        log_level_replica="error",
        **renamed,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several devices are torchrun's business, never DataParallel's
    return arguments


def _check_trackers(names: list[str]) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            allowed = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"training.report_to names {name!r}; the Trainer can report to {allowed}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise ValueError(
                f"training.report_to names {name!r}, which cannot be used here: {error}; install it or take it out"
            ) from error


def _open_folder(output: Path, recipe: Recipe, resume: bool) -> None:
    from titanslab.runs.versions import versions

    output.mkdir(parents=True, exist_ok=True)
    if resume:
        checkpoints.remove_half_written(output / "checkpoints")
    else:
        write_whole(output / RECIPE, recipe.to_toml())
    if not (output / VERSIONS).exists():
        facts = versions() | {"seed": recipe.training.seed, "command": sys.argv, "folder": os.getcwd()}
        write_whole(output / VERSIONS, json.dumps(facts, indent=1) + "\n")


def _checkpoint_to_resume(output: Path, say: Say) -> Path | None:
    every = checkpoints.all_checkpoints(output / "checkpoints")
    last = checkpoints.last_complete(output / "checkpoints")
    if every and (last is None or every[-1] != last):
        say(f"warning: {every[-1].name} is damaged and left aside")
    say(f"resuming from {last.name}" if last else "no checkpoint yet: starting from the first step")
    return last


def _save_final(trainer: Any, output: Path, result: dict[str, Any]) -> None:
    """Put the model and tokenizer into the run folder, file by file, config.json last, then result.json."""
    staging = output / ".final"
    trainer.save_model(str(staging))
    if not trainer.is_world_process_zero():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)
    put_in_place(staging, output, last="config.json")  # a folder with a config.json is taken for a whole model
    write_whole(output / RESULT, json.dumps(result, indent=1) + "\n")


def _quiet(text: str) -> None:
    """What processes other than the first one say."""
