"""[model] and [data] of a recipe that trains a language model."""

import inspect
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from titanslab.data.bpe import bpe_size
from titanslab.data.template import check_template
from titanslab.models.config import MEMORY_OPTIONS, PRESETS, VARIANTS, TitansConfig
from titanslab.training.baselines import STARTS, USUAL, check_architecture, option_names
from titanslab.training.settings import MOST, Count, one_of

if TYPE_CHECKING:
    from titanslab.training.recipe import TrainingRecipe


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
            one_of("model.start", self.start, (USUAL,) if self.architecture is None else STARTS)
            if self.pretrained is not None:
                raise ValueError(f"model.start = {self.start!r} is for new models, and model.pretrained is not one")
        if self.pretrained is None and self.architecture is None:
            self.preset, self.variant = self.preset or "tiny", self.variant or "mac"
            one_of("model.preset", self.preset, tuple(PRESETS))
            one_of("model.variant", self.variant, VARIANTS)

    def option_names(self) -> list[str]:
        """The keys that `options` may hold: the fields of the model's config."""
        return config_fields(TitansConfig) if self.architecture is None else option_names(self.architecture)


def config_fields(kind: type[TitansConfig]) -> list[str]:
    """The fields of a Titans config that a recipe may set, those of the memory under their names of one level."""
    own = (inspect.get_annotations(cls) for cls in kind.__mro__ if cls.__module__.startswith("titanslab"))
    fields = {name for hints in own for name, hint in hints.items() if "ClassVar" not in str(hint)}
    return sorted(MEMORY_OPTIONS) + sorted(name for name in fields if name[0] != "_" and name != "model_type")


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
        carry: read documents in order, a row after the other, and go on from what the model has read of a document
            before. Gradients stay within a row. For Titans models.
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
    carry: bool = False
    shuffle: bool = True
    shuffle_buffer: Count = 256

    @property
    def validates(self) -> bool:
        """Whether there are rows to validate with."""
        return self.validation is not None

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
        if self.carry:
            self.check_order("data.carry = true")
        one_of("data.text_documents", self.text_documents, ("file", "line", "paragraph"))
        bpe_size(self.tokenizer)

    def check_order(self, reader: str) -> None:
        """Raise ValueError unless `reader`, in words, can read the documents in order."""
        for name in ("streaming", "pack_documents"):
            if getattr(self, name):
                raise ValueError(
                    f"data.{name} = true mixes documents, and {reader} reads each one in order; set data.{name} = false"
                )
        if self.train is None:
            raise ValueError("data.train is missing: give documents, which may be mixed with data.task")

    def check_with(self, model: Any, training: "TrainingRecipe") -> None:
        """Raise ValueError for values that cannot work together with the other sections."""
        for name, wrong, fix in (
            ("gradient_checkpointing = true", training.gradient_checkpointing, "false"),
            ("compile = true", training.compile, "false"),
            ('sharding = "fsdp"', training.sharding == "fsdp", '"ddp"'),
        ):
            if self.carry and wrong:
                raise ValueError(f"training.{name} and data.carry = true do not go together; set one to {fix}")
        if model.pretrained is not None and bpe_size(self.tokenizer) is not None:
            raise ValueError(
                f"data.tokenizer = {self.tokenizer!r} makes a new tokenizer, and model.pretrained needs its own; "
                f"give data.tokenizer = {model.pretrained!r}"
            )
        tokens = training.batch_size * self.sequence_length
        if tokens > MOST:
            raise ValueError(
                f"training.batch_size = {training.batch_size} rows of data.sequence_length = "
                f"{self.sequence_length} are {tokens:,} tokens, and a forward pass takes {MOST:,}; lower one"
            )
