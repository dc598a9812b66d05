"""[graft] and [data] of a recipe that trains a memory for a pretrained model."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from titanslab.memory.config import MemoryConfig, OptionError
from titanslab.training.settings import Count, CountOrZero, one_of
from titanslab.training.text_sections import DataRecipe

if TYPE_CHECKING:
    from titanslab.graft.config import GraftConfig
    from titanslab.training.recipe import TrainingRecipe

GRAFT = "graft"  # the name of the section
TRAINED = ("memory", "lora", "all")  # allowed values of graft.train
ALL = "all"  # graft.window_size: None, which TOML lacks
BASE = "base"  # data.tokenizer: that of the base


@dataclass
class GraftRecipe:
    """[graft]: the base, its memories and what is trained.

    Args:
        base: the folder of a causal language model of transformers.
        layers, window_size, num_sink_tokens, placement: see `GraftConfig`; `window_size = "all"` stands for None.
        lora: rank of LoRA's matrices in the base, by peft; 0 = none.
        lora_alpha: their scale; None = twice the rank.
        lora_targets: the names of the base's modules that get them; None = peft's choice for the architecture, and
            where it has none the linear maps of attention.
        train: the weights that change besides the memories': none ("memory"), LoRA's ("lora") or all of the base
            ("all"); left out, "lora" where `lora` is above 0, else "memory".
        carry: the memories, and the window, go on from a piece of a document to the next one.
        pieces: pieces after which they start anew within a document; None = at its end alone.
        gate_ramp: steps over which the memories' outputs rise from 0 to their full size. The output projections then
            start at random in the place of 0, so that the memories take part from the first steps on.
        control_documents, control_tokens: documents, and tokens of each at most, of the controls at the end.
        options: every other key of the section, a field of `MemoryConfig`.
    """

    base: str = ""
    layers: str | list[int] = "third"
    window_size: int | str = 512
    num_sink_tokens: CountOrZero = 4
    placement: str = "mag"
    lora: CountOrZero = 0
    lora_alpha: Count | None = None
    lora_targets: list[str] | None = None
    train: str = ""
    carry: bool = True
    pieces: Count | None = None
    gate_ramp: CountOrZero = 0
    control_documents: Count = 4
    control_tokens: Count = 4096
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def pretrained(self) -> str:
        """The model to start from, as [model] of the other kinds has it."""
        return self.base

    def check(self) -> None:
        if not self.base:
            raise ValueError("graft.base is missing: give the folder of a causal language model of transformers")
        self.train = self.train or ("lora" if self.lora else "memory")
        one_of("graft.train", self.train, TRAINED)
        if self.train == "lora" and not self.lora:
            raise ValueError('graft.train = "lora" needs graft.lora, the rank, such as 16')
        if self.train == "memory" and self.layers == "none":
            raise ValueError(
                'graft.layers = "none" leaves nothing to train; give graft.lora, the rank, or graft.train = "all"'
            )
        if self.train != "lora" and self.lora:
            raise ValueError(
                f'graft.lora = {self.lora} has no use with graft.train = "{self.train}"; leave one of the two out'
            )
        for name in ("lora_alpha", "lora_targets"):
            if not self.lora and getattr(self, name) is not None:
                raise ValueError(f"graft.{name} needs graft.lora, the rank, such as 16")
        if not self.carry and self.pieces is not None:
            raise ValueError("graft.pieces needs graft.carry = true")
        if all(key in self.option_names() for key in self.options):  # an unknown key has an error of its own
            self.config()

    def config(self) -> "GraftConfig":
        """The config of the graft; ValueError names the key that it refuses."""
        from titanslab.graft.config import GraftConfig

        try:
            memory = MemoryConfig(**{"num_heads": 4, "head_dim": 64} | self.options)
            layers = self.layers if isinstance(self.layers, str) else tuple(self.layers)
            window: Any = None if self.window_size == ALL else self.window_size
            return GraftConfig(layers, window, self.num_sink_tokens, self.placement, memory)
        except OptionError as error:
            raise ValueError(f"graft.{error}") from None

    def option_names(self) -> list[str]:
        """The keys that `options` may hold: the fields of `MemoryConfig`."""
        return [option.name for option in fields(MemoryConfig)]


@dataclass
class GraftDataRecipe(DataRecipe):
    """[data] beside [graft]: documents that are read in order, in pieces of `sequence_length` tokens.

    The keys are those of `DataRecipe`, of which `streaming` and `pack_documents` stay off.

    Args:
        tokenizer: "base" = that of the base.
        sequence_length: tokens of a piece, over which gradients flow.
        pack_documents: false; a piece holds one document.
        shuffle: draw the documents in random order, anew each epoch.
    """

    tokenizer: str = BASE
    sequence_length: Count = 1024
    pack_documents: bool = False

    def check(self) -> None:
        super().check()
        self.check_order("a graft")
        if self.carry:
            raise ValueError("data.carry = true is for models without a graft; set graft.carry")

    def check_with(self, model: Any, training: "TrainingRecipe") -> None:
        super().check_with(model, training)
        if model.carry and training.gradient_checkpointing:
            raise ValueError(
                "training.gradient_checkpointing = true keeps no cache, which graft.carry = true needs; set one to "
                "false"
            )
        if training.epochs is None and model.gate_ramp > training.steps:
            raise ValueError(
                f"graft.gate_ramp = {model.gate_ramp} does not end within training.steps = {training.steps}; lower it"
            )
        if training.compile:
            raise ValueError("training.compile = true cannot compile a grafted model; set it to false")
        if training.sharding == "fsdp":
            raise ValueError('training.sharding = "fsdp" cannot divide a grafted model; set it to "ddp"')
