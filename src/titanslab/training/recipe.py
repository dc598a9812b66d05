"""A recipe: one TOML file with the model, the data and the training of a run, read into typed settings."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from titanslab.models.config import nearest
from titanslab.training.graft_sections import GRAFT, GraftDataRecipe, GraftRecipe
from titanslab.training.recipe_file import read_recipe_file
from titanslab.training.sequence_sections import SEQUENCES, ClassifierRecipe, SequencesRecipe
from titanslab.training.series_sections import SERIES, ForecasterRecipe, SeriesRecipe
from titanslab.training.settings import (
    Count,
    CountOrZero,
    build_settings,
    one_of,
    read_assignment,
    toml_text,
    unknown_key,
)
from titanslab.training.text_sections import DataRecipe, ModelRecipe

Beta = Annotated[float, Meta(ge=0, lt=1)]
SHARDINGS = ("ddp", "fsdp")
LENGTHS = ("steps", "epochs")  # keys of [training] of which one sets the length of the run
LAST, BEST = "last", "best"  # allowed values of training.keep
TEXT = "data"
# The kinds of recipes, by the name of the section that only they have: the types of the model's and the data's section.
KINDS: dict[str, tuple[type, type]] = {
    GRAFT: (GraftRecipe, GraftDataRecipe),
    SERIES: (ForecasterRecipe, SeriesRecipe),
    SEQUENCES: (ClassifierRecipe, SequencesRecipe),
    TEXT: (ModelRecipe, DataRecipe),
}
SECTIONS = ("model", *KINDS, "training")


def section_names(kind: str) -> tuple[str, str]:
    """The names of the sections with the model and with the data of a kind of recipes."""
    return (GRAFT, TEXT) if kind == GRAFT else ("model", kind)


@dataclass
class TrainingRecipe:
    """[training]: the optimiser, its schedule, logs and checkpoints; counts are optimiser steps.

    Args:
        steps: of the whole run; or give `epochs`, passes over the training rows, in its place.
        patience: stop after this many validations in a row without a better one; None = never.
        keep: the weights of the run: those of the "last" step, or of the "best" validation.
        batch_size, eval_batch_size: rows per device and forward pass; for validation the former where None.
        accumulation: forward passes per step, which sees batch_size * accumulation * devices rows.
        global_batch_size: rows of a step on all devices; the accumulation then follows from it, so that a run keeps its
            losses on any number of devices.
        learning_rate, warmup_steps, schedule: the rate rises linearly over the first steps, then follows the schedule.
        optimizer: "adamw", or "muon" for orthogonalised steps of the matrices (`MuonWithAdamW`).
        weight_decay, beta1, beta2, gradient_clip: of the optimiser; `gradient_clip` bounds the gradient's norm.
        write_cost_warmup: steps over which model.memory_write_cost rises from 0.
        log_every, eval_every, save_every: steps between two logs, validations, checkpoints; eval_every None = each
            epoch where `epochs` is given, else never.
        keep_checkpoints: checkpoints kept, the newest.
        sharding: with several processes, "ddp" keeps the whole training state on each device, and "fsdp" a part of it.
        precision: "fp32", or "bf16" for autocast with weights in float32.
        compile, gradient_checkpointing: compile each block; recompute activations in the backward pass.
        deterministic: use deterministic algorithms alone, where torch has them.
        cpu: train on the CPU, also where there is a GPU.
        report_to: trackers that the Trainer reports to, such as "wandb".
    """

    steps: Count = 1000
    epochs: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    patience: Count | None = None
    keep: str = LAST
    batch_size: Count = 8
    accumulation: Count = 1
    global_batch_size: Count | None = None
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 1e-3
    warmup_steps: CountOrZero = 50
    schedule: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: Annotated[float, Meta(ge=0, le=1000)] = 0.1
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    gradient_clip: Annotated[float, Meta(ge=0, le=1e30)] = 1.0
    write_cost_warmup: CountOrZero = 0
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0  # NumPy takes 32 bits
    log_every: Count = 10
    eval_every: Count | None = None
    eval_batch_size: Count | None = None
    save_every: Count = 500
    keep_checkpoints: Count = 2
    sharding: str = "ddp"
    precision: str = "fp32"
    compile: bool = False
    gradient_checkpointing: bool = False
    deterministic: bool = False
    cpu: bool = False
    report_to: list[str] = field(default_factory=list)

    def check(self) -> None:
        if self.learning_rate * self.weight_decay > 1:
            raise ValueError(
                f"training.weight_decay = {self.weight_decay} times training.learning_rate = {self.learning_rate} is "
                "above 1, so a step would change the sign of every weight; lower one of the two"
            )
        one_of("training.schedule", self.schedule, ("cosine", "linear", "constant"))
        one_of("training.precision", self.precision, ("fp32", "bf16"))
        one_of("training.optimizer", self.optimizer, ("adamw", "muon"))
        one_of("training.sharding", self.sharding, SHARDINGS)
        one_of("training.keep", self.keep, (LAST, BEST))
        if self.keep == BEST and self.sharding == "fsdp":
            raise ValueError(
                f'training.keep = "{BEST}" needs whole weights on each device; give training.sharding = "ddp" or '
                f'training.keep = "{LAST}"'
            )
        if self.optimizer == "muon" and self.sharding == "fsdp":
            raise ValueError(
                'training.optimizer = "muon" needs whole matrices on each device; give training.sharding = "ddp" or '
                'training.optimizer = "adamw"'
            )
        if self.global_batch_size is not None and self.accumulation != 1:
            raise ValueError(
                f"training.accumulation = {self.accumulation} follows from training.global_batch_size = "
                f"{self.global_batch_size}; remove one of the two"
            )
        if self.global_batch_size is not None and self.global_batch_size % self.batch_size:
            raise ValueError(
                f"training.global_batch_size = {self.global_batch_size} must be a multiple of training.batch_size = "
                f"{self.batch_size}"
            )

    def passes(self, devices: int = 1) -> int:
        """Forward passes of a step on each of so many devices; ValueError where they cannot share its rows evenly."""
        if self.global_batch_size is None:
            return self.accumulation
        passes, rest = divmod(self.global_batch_size, self.batch_size * devices)
        if rest or not passes:
            raise ValueError(
                f"training.global_batch_size = {self.global_batch_size} rows cannot be shared by {devices} devices "
                f"with training.batch_size = {self.batch_size} rows each; it must be a multiple of "
                f"{self.batch_size * devices}"
            )
        return passes

    def rows(self, devices: int = 1) -> int:
        """Rows of a step on all devices."""
        return self.batch_size * self.passes(devices) * devices


@dataclass
class Recipe:
    """A whole recipe; `load_recipe` reads one, `to_toml` writes it back with every default filled in.

    Args:
        kind: what is trained, a key of `KINDS`.
        model, data, training: the sections, of the types that `KINDS` has for the kind.
    """

    model: Any
    data: Any
    training: TrainingRecipe
    kind: str = TEXT

    def check(self) -> None:
        """Raise ValueError for values that cannot work, alone or together."""
        self.model.check()
        self.data.check()
        self.training.check()
        self.data.check_with(self.model, self.training)
        if self.data.validates:
            return
        data = section_names(self.kind)[1]
        for name in ("eval_every", "patience"):
            if getattr(self.training, name) is not None:
                raise ValueError(f"training.{name} needs {data}.validation, which is missing")
        if self.training.keep == BEST:
            raise ValueError(f'training.keep = "{BEST}" needs {data}.validation, which is missing')

    def sections(self) -> dict[str, dict[str, Any]]:
        """The recipe as nested values, laid out as in the TOML file; `steps` is left out where `epochs` sets it."""
        model = {k: v for k, v in dataclasses.asdict(self.model).items() if k != "options" and v not in (None, "")}
        training = dataclasses.asdict(self.training)
        if self.training.epochs is not None:
            del training["steps"]
        names = section_names(self.kind)
        return {names[0]: model | self.model.options, names[1]: dataclasses.asdict(self.data), "training": training}

    def to_toml(self) -> str:
        """TOML text from which `parse_recipe` makes an equal recipe."""
        return toml_text(self.sections())


def load_recipe(path: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` assignments, in order.

    Raises FileNotFoundError for a missing file and ValueError for a fault inside it, which names the key.
    """
    return parse_recipe(read_recipe_file(path), assignments, origin=str(path))


def parse_recipe(table: dict[str, Any], assignments: Sequence[str] = (), origin: str = "recipe") -> Recipe:
    """Build a checked Recipe from nested values; `origin` is named in errors."""
    table = {name: dict(section) if isinstance(section, dict) else section for name, section in table.items()}
    for name, section in table.items():
        if name not in SECTIONS:
            raise ValueError(
                f"{origin}: unknown section [{name}]; allowed: {', '.join(f'[{one}]' for one in SECTIONS)}"
                f"{nearest(name, SECTIONS)}"
            )
        if not isinstance(section, dict):
            raise ValueError(f"{origin}: {name} must be a section [{name}], got {section!r}")
    kind = _kind(table, assignments, origin)
    model_name, data_name = section_names(kind)
    if kind == GRAFT and "model" in table:
        raise ValueError(f"{origin}: [graft] names the base of a graft, so that [model] has no use; remove [model]")
    types = {model_name: KINDS[kind][0], data_name: KINDS[kind][1], "training": TrainingRecipe}
    origins: dict[str, dict[str, str]] = {name: {} for name in types}  # of the keys that were assigned
    for assignment in assignments:
        section, key = _assign(table, assignment, types)
        origins[section][key] = f"--set {assignment!r}"
        if section == "training" and key in LENGTHS:  # the one that the file has gives way
            table["training"].pop(*(name for name in LENGTHS if name != key), None)
    model_keys = [f.name for f in dataclasses.fields(types[model_name]) if f.name != "options"]
    model = table.get(model_name, {})
    options = {key: value for key, value in model.items() if key not in model_keys}
    table[model_name] = {key: value for key, value in model.items() if key in model_keys} | {"options": options}
    parts = {
        name: build_settings(type_, table.get(name, {}), name, origin, origins[name]) for name, type_ in types.items()
    }
    training = table.get("training", {})
    if all(training.get(name) is not None for name in LENGTHS):
        raise ValueError(
            f"{origin}: training.steps = {training['steps']!r} and training.epochs = {training['epochs']!r} both set "
            "the length of the run; remove one of the two"
        )
    recipe = Recipe(parts[model_name], parts[data_name], parts["training"], kind)
    recipe.check()
    allowed = recipe.model.option_names()
    for key in recipe.model.options:
        if key not in allowed:
            raise unknown_key(key, model_name, (*allowed, *model_keys), origins[model_name].get(key, origin))
    return recipe


def _kind(table: Mapping[str, Any], assignments: Sequence[str], origin: str) -> str:
    """The kind of a recipe: the one section of `KINDS` that it has, or that an assignment names; else `TEXT`."""
    found = [name for name in KINDS if name in table]
    found = found or [name for name in KINDS if any(text.startswith(f"{name}.") for text in assignments)]
    if GRAFT in found:
        found = [name for name in found if name != TEXT]
    if len(found) > 1:
        raise ValueError(f"{origin}: a recipe has one of the sections {', '.join(f'[{n}]' for n in found)}; remove one")
    return found[0] if found else TEXT


def _assign(table: dict[str, Any], assignment: str, types: Mapping[str, type]) -> tuple[str, str]:
    """Put the value of an assignment into the table; returns its section and its key there."""
    section, key, value = read_assignment(assignment)
    if section not in types:
        *others, last = (f"{name}.KEY" for name in types)
        raise ValueError(
            f"--set {assignment!r}: unknown section {section!r}; write {', '.join(others)} or {last}"
            f"{nearest(section, tuple(types))}"
        )
    hint = typing.get_type_hints(types[section]).get(key)
    if not isinstance(value, str) and hint in (str, str | None):
        value = assignment.split("=", 1)[1]  # data.text_column=7 stands for the text "7"
    *tables, last = key.split(".")  # data.task_options.haystack: a key of a table inside the section
    place, where = table.setdefault(section, {}), section
    for name in tables:
        inner, where = place.get(name, {}), f"{where}.{name}"
        if not isinstance(inner, dict):
            raise ValueError(f"--set {assignment!r}: {where} is {inner!r}, not a table that could hold a key")
        place[name] = dict(inner)
        place = place[name]
    place[last] = value
    return section, (*tables, last)[0]
