"""A recipe: one TOML file with the model, the data and the training of a run, read into typed settings."""

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from titanslab.data.bpe import bpe_size
from titanslab.data.template import check_template
from titanslab.models.config import MEMORY_OPTIONS, PRESETS, VARIANTS, TitansConfig, nearest
from titanslab.training.baselines import STARTS, USUAL, check_architecture, option_names
from titanslab.training.recipe_file import read_recipe_file
from titanslab.training.settings import build_settings, read_assignment, toml_text, unknown_key

MOST = (1 << 31) - 1  # of counts: torch's kernels index with 32 bits
Count = Annotated[int, Meta(ge=1, le=MOST)]
CountOrZero = Annotated[int, Meta(ge=0, le=MOST)]
Beta = Annotated[float, Meta(ge=0, lt=1)]
SHARDINGS = ("ddp", "fsdp")


@dataclass
class ModelRecipe:
    """[model]: a preset with changed fields, a checkpoint to start from, or a model of transformers.

    Args:
        preset, variant: of a Titans model, see `TitansConfig.preset`; "tiny" and "mac" where missing.
        parameters: the number of parameters of a new model, embeddings included; the width of its MLPs follows from it,
            see `fit_parameters`.
        pretrained: the folder of a run or a saved model to start from.
        architecture: the `model_type` of a model of transformers, such as "llama".
        start: the initial values of Gated DeltaNet or Mamba2 layers, see `start_layers`; "usual" for those of a Titans
            model without the start that recalls, see `start_usually`.
        template: the text that the model reads for a question, such as " {question}". It becomes the chat template of
            the tokenizer in the run folder, which `titans ask`, `titans chat` and `apply_chat_template` use. Where it
            is missing, the tokenizer keeps the template that it has.
        max_new_tokens, temperature: of answers; they are written to generation_config.json in the run folder.
        options: every other key of the section, a field of TitansConfig or of the architecture's config;
            `window_size = "all"` stands for None.
    """

    preset: str = ""
    variant: str = ""
    parameters: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    pretrained: str | None = None
    architecture: str | None = None
    start: str | None = None
    template: str | None = None
    max_new_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if self.template is not None:
            check_template(self.template, "model.template")
        sources = ("pretrained", "architecture")
        for source, name in itertools.product(sources, ("preset", "variant", "architecture")):
            if source != name and getattr(self, source) is not None and getattr(self, name):
                raise ValueError(
                    f"model.{name} = {getattr(self, name)!r} cannot take effect together with "
                    f"model.{source} = {getattr(self, source)!r}; remove one of the two"
                )
        if self.parameters is not None:
            for key, value in (("pretrained", self.pretrained), *self.options.items()):
                if key in ("pretrained", "intermediate_size") and value is not None:
                    raise ValueError(
                        f"model.parameters = {self.parameters} chooses the width of the MLPs, which model.{key} = "
                        f"{value!r} sets already; remove one of the two"
                    )
        if self.architecture is not None:
            check_architecture(self.architecture)
        if self.start is not None:
            if self.architecture is None and self.start in STARTS:
                raise ValueError(f"model.start = {self.start!r} needs model.architecture; remove one or name the other")
            _one_of("model.start", self.start, (USUAL,) if self.architecture is None else STARTS)
            if self.pretrained is not None:
                raise ValueError(f"model.start = {self.start!r} is for new models, and model.pretrained is not one")
        if self.pretrained is None and self.architecture is None:
            self.preset, self.variant = self.preset or "tiny", self.variant or "mac"
            _one_of("model.preset", self.preset, tuple(PRESETS))
            _one_of("model.variant", self.variant, VARIANTS)


@dataclass
class DataRecipe:
    """[data]: the source of the text, its tokenizer, and the way from tokens to rows of `sequence_length`.

    Args:
        train, validation: a file, a folder, a glob pattern or a list of them (text, JSONL, parquet, FASTA, compressed
            or not), the name of a dataset on the hub, or a folder that `titans tokenize` made.
        task, task_options: a generated source of rows and its options, instead of `train` or mixed with it.
        task_share: with both `task` and `train`, the task's share of the rows.
        streaming: read `train` while training, without a cache of its tokens.
        text_column, subset, split, validation_split: of JSONL, parquet and datasets on the hub.
        text_documents: a document of plain text is a "file", a "line" or a "paragraph".
        validation_samples: validate on this many rows at most.
        tokenizer: a name for `titanslab.data.load_tokenizer`, such as "byte", or "bpe:2048" for one of 2,048 tokens
            that is made of the training text and kept in the run folder.
        pack_documents: a row may hold several documents; False gives each row one document or a part of it.
        shuffle, shuffle_buffer: draw the rows in random order; with `streaming`, from a buffer of this many rows.
    """

    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    task: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    task_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    streaming: bool = False
    text_column: str = "text"
    text_documents: str = "file"
    subset: str | None = None
    split: str = "train"
    validation_split: str = "validation"
    validation_samples: Count | None = None
    tokenizer: str = "byte"
    sequence_length: Annotated[int, Meta(ge=2, le=MOST)] = 512  # one token to read and one to predict
    pack_documents: bool = True
    shuffle: bool = True
    shuffle_buffer: Count = 256

    def check(self) -> None:
        if self.train is None and self.task is None:
            raise ValueError("data.train is missing: give a file, a folder, a list of files or a hub dataset name")
        if self.task is None and (self.task_options or self.task_share != 1.0):
            raise ValueError("data.task_options and data.task_share need data.task, which is missing")
        if self.task is not None and self.train is None and self.task_share != 1.0:
            raise ValueError("data.task_share below 1 mixes the task with data.train, which is missing")
        if self.task is not None and self.train is not None and not 0.0 < self.task_share < 1.0:
            raise ValueError(
                f"data.task_share is {self.task_share}: with both data.task and data.train it is the task's share of "
                "the samples, above 0 and below 1"
            )
        if self.task is not None and self.streaming:
            raise ValueError("data.streaming = true cannot be combined with data.task; set streaming = false")
        for name in ("text_column", "split", "validation_split", "tokenizer"):
            if not getattr(self, name):
                raise ValueError(f"data.{name} is empty; leave it out for {getattr(DataRecipe, name)!r}")
        _one_of("data.text_documents", self.text_documents, ("file", "line", "paragraph"))
        bpe_size(self.tokenizer)


@dataclass
class TrainingRecipe:
    """[training]: the optimiser, its schedule, logs and checkpoints; counts are optimiser steps.

    Args:
        batch_size, eval_batch_size: rows per device and forward pass; for validation the former where None.
        accumulation: forward passes per step, which sees batch_size * accumulation * devices rows.
        global_batch_size: rows of a step on all devices; the accumulation then follows from it, so that a run keeps its
            losses on any number of devices.
        learning_rate, warmup_steps, schedule: the rate rises linearly over the first steps, then follows the schedule.
        optimizer: "adamw", or "muon" for orthogonalised steps of the matrices (`MuonWithAdamW`).
        weight_decay, beta1, beta2, gradient_clip: of the optimiser; `gradient_clip` bounds the gradient's norm.
        write_cost_warmup: steps over which model.memory_write_cost rises from 0.
        log_every, eval_every, save_every: steps between two logs, validations (None = never), checkpoints.
        keep_checkpoints: checkpoints kept, the newest.
        sharding: with several processes, "ddp" keeps the whole training state on each device, and "fsdp" a part of it.
        precision: "fp32", or "bf16" for autocast with weights in float32.
        compile, gradient_checkpointing: compile each block; recompute activations in the backward pass.
        deterministic: use deterministic algorithms alone, where torch has them.
        cpu: train on the CPU, also where there is a GPU.
        report_to: trackers that the Trainer reports to, such as "wandb".
    """

    steps: Count = 1000
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
        _one_of("training.schedule", self.schedule, ("cosine", "linear", "constant"))
        _one_of("training.precision", self.precision, ("fp32", "bf16"))
        _one_of("training.optimizer", self.optimizer, ("adamw", "muon"))
        _one_of("training.sharding", self.sharding, SHARDINGS)
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
    """A whole recipe; `load_recipe` reads one, `to_toml` writes it back with every default filled in."""

    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe

    def check(self) -> None:
        """Raise ValueError for values that cannot work, alone or together."""
        self.model.check()
        self.data.check()
        self.training.check()
        if self.model.pretrained is not None and bpe_size(self.data.tokenizer) is not None:
            raise ValueError(
                f"data.tokenizer = {self.data.tokenizer!r} makes a new tokenizer, and model.pretrained needs its own; "
                f"give data.tokenizer = {self.model.pretrained!r}"
            )
        tokens = self.training.batch_size * self.data.sequence_length
        if tokens > MOST:
            raise ValueError(
                f"training.batch_size = {self.training.batch_size} rows of data.sequence_length = "
                f"{self.data.sequence_length} are {tokens:,} tokens, and a forward pass takes {MOST:,}; lower one"
            )
        if self.training.eval_every is not None and self.data.validation is None:
            raise ValueError("training.eval_every needs data.validation, which is missing")

    def sections(self) -> dict[str, dict[str, Any]]:
        """The recipe as nested values, laid out as in the TOML file."""
        model = {k: v for k, v in dataclasses.asdict(self.model).items() if k != "options" and v not in (None, "")}
        return {
            "model": model | self.model.options,
            "data": dataclasses.asdict(self.data),
            "training": dataclasses.asdict(self.training),
        }

    def to_toml(self) -> str:
        """TOML text from which `parse_recipe` makes an equal recipe."""
        return toml_text(self.sections())


MODEL_KEYS = [f.name for f in dataclasses.fields(ModelRecipe) if f.name != "options"]
SECTIONS = {"model": ModelRecipe, "data": DataRecipe, "training": TrainingRecipe}


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
                f"{origin}: unknown section [{name}]; allowed: [model], [data], [training]"
                f"{nearest(name, tuple(SECTIONS))}"
            )
        if not isinstance(section, dict):
            raise ValueError(f"{origin}: {name} must be a section [{name}], got {section!r}")
    origins: dict[str, dict[str, str]] = {name: {} for name in SECTIONS}  # of the keys that were assigned
    for assignment in assignments:
        section, key = _assign(table, assignment)
        origins[section][key] = f"--set {assignment!r}"
    model = table.get("model", {})
    options = {key: value for key, value in model.items() if key not in MODEL_KEYS}
    table["model"] = {key: value for key, value in model.items() if key in MODEL_KEYS} | {"options": options}
    parts = {
        name: build_settings(kind, table.get(name, {}), name, origin, origins[name]) for name, kind in SECTIONS.items()
    }
    recipe = Recipe(**parts)
    recipe.check()
    check_model_options(recipe.model, origin, origins["model"])
    return recipe


def check_model_options(model: ModelRecipe, origin: str, origins: Mapping[str, str]) -> None:
    """Raise ValueError when [model] holds a key that is neither ours nor a field of the model's config."""
    if model.architecture is not None:
        allowed = option_names(model.architecture)
    else:
        own = (inspect.get_annotations(cls) for cls in TitansConfig.__mro__ if cls.__module__.startswith("titanslab"))
        fields = {name for hints in own for name, hint in hints.items() if "ClassVar" not in str(hint)}
        allowed = sorted(MEMORY_OPTIONS) + sorted(name for name in fields if name[0] != "_" and name != "model_type")
    for key in model.options:
        if key not in allowed:
            raise unknown_key(key, "model", (*allowed, *MODEL_KEYS), origins.get(key, origin))


def _assign(table: dict[str, Any], assignment: str) -> tuple[str, str]:
    """Put the value of an assignment into the table; returns its section and its key there."""
    section, key, value = read_assignment(assignment)
    if section not in SECTIONS:
        raise ValueError(
            f"--set {assignment!r}: unknown section {section!r}; write model.KEY, data.KEY or training.KEY"
            f"{nearest(section, tuple(SECTIONS))}"
        )
    hint = typing.get_type_hints(SECTIONS[section]).get(key)
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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}{nearest(value, allowed)}")
