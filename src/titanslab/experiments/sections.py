"""The sections of a study besides its models: questions, texts, sizes, rates, measures and the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ask:
    """[ask]: the samples that each trained model answers. Without `task`, models are trained and answer nothing.

    Args:
        task: a task of `titans evaluate`, such as `niah`.
        names: variants or sub-tasks, separated by commas.
        lengths: lengths in tokens, such as `2k,4k`.
        samples: number of samples per name and length.
        far, far_samples: longer lengths, and the number of samples at them.
        frozen, frozen_samples: the same for the control with frozen memories. None = `lengths` and `samples`; an empty
            `frozen` = no control.
        max_new_tokens: most tokens of an answer.
        seed: seed of the samples.
        batch_size, batch_tokens: most prompts, and most prompt tokens, in one batch.
        piece: number of tokens read in one call.
        tokenizer_for_length: tokenizer in whose tokens lengths are counted; None = the model's.
        options: options of the task itself, such as `haystack`.
    """

    task: str = ""
    names: str = ""
    lengths: str = ""
    samples: int = 100
    far: str = ""
    far_samples: int = 10
    frozen: str | None = None
    frozen_samples: int | None = None
    max_new_tokens: int = 128
    seed: int = 42
    batch_size: int = 16
    batch_tokens: int = 1 << 16
    piece: int = 4096
    tokenizer_for_length: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class FileUse:
    """A file or folder from the command line: the settings that receive its path, and whether it is required."""

    to: list[str] = field(default_factory=list)
    needed: bool = False


@dataclass
class Texts:
    """[texts]: the settings that receive the texts of --data and --validation, each `[SET:]section.key`.

    Args:
        train, validation: receive lists of files.
        train_excerpt, validation_excerpt: receive a file with the beginning of these texts, such as a haystack.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    train_excerpt: list[str] = field(default_factory=list)
    validation_excerpt: list[str] = field(default_factory=list)


@dataclass
class TokenizerPlan:
    """[tokenizer]: a byte-level BPE, trained on the training text.

    Args:
        vocabulary: number of tokens.
        stories: also train on stories in the style of bAbI, or on the files of `train_facts` if they are given.
        phrases: also train on the sentences that all samples of S-NIAH share.
    """

    vocabulary: int = 2048
    stories: bool = False
    phrases: bool = False


@dataclass
class Size:
    """[size]: every row has as many parameters as the row `like`. Without `like`, rows keep the widths they have.

    Args:
        like: name of a row.
        widths: options of the model that are chosen, with the step of each; see `fit_size`. A row may have its own.
        within: largest share by which the number of parameters may differ.
    """

    like: str = ""
    widths: dict[str, int] = field(default_factory=lambda: {"intermediate_size": 8})
    within: float = 0.015


@dataclass
class Sweep:
    """[sweep]: learning rates that each row tries in short runs. Without `rates`, rows train at the rate of the recipe.

    Args:
        rates: the learning rates; the one with the lowest loss on the validation text trains the row.
        share: steps of a short run, as a share of those of the whole run.
        max_tokens: most tokens of the validation text.
    """

    rates: list[float] = field(default_factory=list)
    share: float = 0.1
    max_tokens: int = 100_000


PERPLEXITY = "perplexity"
SHOWN = {  # perplexity.show: heading and form of its table
    PERPLEXITY: ("Perplexity on held-out text", ".2f"),
    "bits_per_byte": ("Bits per byte of held-out text", ".4f"),
}


@dataclass
class Perplexity:
    """[perplexity]: the loss of each trained model on validation text. Without `lengths`, none is measured.

    Args:
        lengths: tokens of a window, such as `2k,32k`; `row` = the length of the training rows.
        max_tokens: most tokens at each length; one window is read in any case.
        batch_tokens: most tokens in one batch.
        text: files of the text; the command line gives them.
        show: the value of the tables, "perplexity", or "bits_per_byte", which is bits per base for DNA.
    """

    lengths: str = ""
    max_tokens: int = 500_000
    batch_tokens: int = 1 << 14
    text: list[str] = field(default_factory=list)
    show: str = PERPLEXITY

    def check(self, origin: str) -> None:
        """ValueError for a value that cannot be shown."""
        if self.show not in SHOWN:
            raise ValueError(f"{origin}: perplexity.show is {self.show!r}; allowed: {', '.join(SHOWN)}")


@dataclass
class Language:
    """[language]: tasks of `titans evaluate language` that each trained model answers if --language-data is given.

    Args:
        tasks: names of the tasks; an empty list = none.
        data: folder of the tasks' files; the command line gives it.
        limit: most samples of a task; None = all.
    """

    tasks: list[str] = field(default_factory=list)
    data: str = ""
    limit: int | None = None


@dataclass
class Speed:
    """[speed]: training steps of new models, timed one after the other. Without `lengths`, none is timed.

    Args:
        lengths: tokens of a row, such as `2k,4k`; `row` = the length of the training rows.
        tokens: tokens of a step; a longer row is a step of its own.
        repeats: timed steps; the median counts.
    """

    lengths: str = ""
    tokens: int = 8192
    repeats: int = 3


SCORED = ("forecasting", "dna", "graft")  # the verbs of [score]


@dataclass
class Score:
    """[score]: the scores of a verb of `titans evaluate` for each trained model.

    Args:
        verb: "forecasting", "dna" or "graft"; an empty one = no such measure.
        data: the file on which the model is measured, or the files of the texts of a graft; None = the test rows of the
            file that it was trained on, or the sequences that its run set aside.
        values: names of values in the verb's summary; each makes a table, whose columns are groups of sets. Where the
            study has one group, the values are the columns of one table.
        options: of the verb "graft", see `titanslab.experiments.graft_score.Options`.
    """

    verb: str = ""
    data: str | list[str] | None = None
    values: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, origin: str) -> None:
        """ValueError for an unknown verb."""
        if self.verb not in ("", *SCORED):
            raise ValueError(f"{origin}: score.verb is {self.verb!r}; allowed: {', '.join(SCORED)}")


@dataclass
class Folder:
    """[folder]: the settings whose files lie in the folder of --data, each `section.key`, such as `series.file`."""

    to: list[str] = field(default_factory=list)


@dataclass
class PaperTable:
    """Figures of the paper: names of the columns, and the numbers of each row."""

    columns: list[str] = field(default_factory=list)
    rows: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Paper:
    """[paper]: published figures.

    Args:
        source: where they are published.
        lengths, rows: of a task; `rows` maps row -> name -> percent at each of `lengths`.
        tables: of the tables `perplexity`, `speed`, `language`, and of those that `Score.values` name.
    """

    source: str = ""
    lengths: str = ""
    rows: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, PaperTable] = field(default_factory=dict)


MEASURES = {
    "ask": Ask,
    "size": Size,
    "sweep": Sweep,
    "perplexity": Perplexity,
    "language": Language,
    "speed": Speed,
    "score": Score,
}
COUNTS = {  # these numbers shrink with --budget
    "ask": ("samples", "far_samples", "frozen_samples"),
    "sweep": ("max_tokens",),
    "perplexity": ("max_tokens",),
    "language": ("limit",),
}


def row_lengths(lengths: str, row: int, name: str) -> list[int]:
    """Numbers of tokens from a list such as `row,32k`, where `row` is the length of the training rows."""
    from titanslab.tasks.sample import split_lengths

    found = []
    for part in filter(None, (part.strip() for part in lengths.split(","))):
        try:
            found += [row] if part == "row" else split_lengths(part, 1024)
        except ValueError as error:
            raise ValueError(f"{name}: {error}, or `row` for the length of the training rows") from error
    return sorted(set(found))
