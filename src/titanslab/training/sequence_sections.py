"""[model] and [sequences] of a recipe that trains a classifier of DNA."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from titanslab.models.config import PRESETS, VARIANTS
from titanslab.training.settings import Count, one_of

if TYPE_CHECKING:
    from titanslab.training.recipe import TrainingRecipe

SEQUENCES = "sequences"  # the name of the section with the data


@dataclass
class ClassifierRecipe:
    """[model] beside [sequences]: a Titans model with a head for classes, a baseline, or a model to start from.

    Args:
        preset, variant: of a Titans model, see `TitansConfig.preset`; "tiny" and "lmm" where missing.
        pretrained: the folder of a run or a saved model to start from: a language model of DNA, which gets a new head,
            or a classifier.
        architecture: the name of a baseline, see `titanslab.models.classifiers`.
        options: every other key of the section, a field of the model's config.
    """

    preset: str = ""
    variant: str = ""
    pretrained: str | None = None
    architecture: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        sources = {name: getattr(self, name) for name in ("pretrained", "architecture", "preset", "variant")}
        given = [f"model.{name} = {value!r}" for name, value in sources.items() if value]
        if len(given) > 1 and (self.pretrained or self.architecture):
            raise ValueError(f"{given[0]} cannot take effect together with {given[1]}; remove one of the two")
        if self.architecture is not None:
            from titanslab.models.classifiers import check_classifier_architecture

            check_classifier_architecture(self.architecture)
        if self.pretrained is None and self.architecture is None:
            self.preset, self.variant = self.preset or "tiny", self.variant or "lmm"
            one_of("model.preset", self.preset, tuple(PRESETS))
            one_of("model.variant", self.variant, VARIANTS)

    def option_names(self) -> list[str]:
        """The keys that `options` may hold: the fields of the model's config."""
        from titanslab.models.classifiers import CNN_NAME, CNN_OPTIONS, HEAD_OPTIONS
        from titanslab.models.config import TitansConfig
        from titanslab.training.baselines import option_names
        from titanslab.training.text_sections import config_fields

        if self.architecture == CNN_NAME:
            return list(CNN_OPTIONS)
        if self.architecture is None:
            return config_fields(TitansConfig)
        return [*option_names(self.architecture), *HEAD_OPTIONS]


@dataclass
class SequencesRecipe:
    """[sequences]: labelled sequences to train on, and to select on.

    Args:
        train: a table, FASTA file, BED file or folder of labelled sequences, or the name of a set of GenomicBenchmarks,
            whose test part is not read.
        validation: the same; None = a share of `train`, drawn by the seed of the run.
        validation_share: that share.
        test_share: share of `train` that is written to test.tsv in the run folder and not read, the same one for every
            seed; for a source without a test part of its own, as a set has it.
        sequence_column, label_column: of a table.
        reference: the genome of a BED file or a table of coordinates.
        tokenizer: a name for `titanslab.data.load_tokenizer`; that of `model.pretrained` must be the same.
        max_length: bases after which a sequence is cut off; None = the longest one of `train`.
        reverse_complement: give half of the training sequences as their reverse complement, anew in each epoch.
    """

    train: str = ""
    validation: str | None = None
    validation_share: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    test_share: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    sequence_column: str | None = None
    label_column: str | None = None
    reference: str | None = None
    tokenizer: str = "dna"
    max_length: Count | None = None
    reverse_complement: bool = True

    @property
    def validates(self) -> bool:
        """True: some of the sequences are held out to validate with."""
        return True

    def check(self) -> None:
        if not self.train:
            raise ValueError("sequences.train is missing: give a file or folder of labelled sequences")
        if self.validation is not None and self.test_share:
            raise ValueError("sequences.test_share and sequences.validation are both set; remove one of the two")

    def check_with(self, model: ClassifierRecipe, training: "TrainingRecipe") -> None:
        """Raise ValueError for values that cannot work together with the other sections."""
