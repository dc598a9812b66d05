"""The sets of GenomicBenchmarks by name, local files, and their splits into training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data.dna.labelled import Columns, LabelledSequences, read_labelled

HOME = "~/.genomic_benchmarks"  # where the package genomic-benchmarks keeps its sets


@dataclass(frozen=True)
class DnaSet:
    """A set of GenomicBenchmarks.

    Args:
        title: its name in tables.
        train, test: number of sequences. max_length: bases of the longest one that is read, as HyenaDNA sets it.
    """

    title: str
    train: int
    test: int
    max_length: int


SETS = {
    "human_enhancers_cohn": DnaSet("Human enhancers (Cohn)", 20843, 6948, 500),
    "human_enhancers_ensembl": DnaSet("Human enhancers (Ensembl)", 123872, 30970, 512),
    "human_ensembl_regulatory": DnaSet("Human regulatory (Ensembl)", 231348, 57713, 512),
    "human_nontata_promoters": DnaSet("Human non-TATA promoters", 27097, 9034, 251),
    "human_ocr_ensembl": DnaSet("Human open chromatin (Ensembl)", 139804, 34952, 512),
}


@dataclass(frozen=True)
class Splits:
    """The three parts of labelled sequences, and how they came about in words for a result."""

    train: LabelledSequences
    validation: LabelledSequences
    test: LabelledSequences
    about: str

    @property
    def labels(self) -> list[str]:
        """The labels of all parts, in the order of the model's outputs."""
        return LabelledSequences([], [*self.train.labels, *self.validation.labels, *self.test.labels], []).label_names

    @property
    def longest(self) -> int:
        """Bases of the longest sequence of all parts."""
        return max(len(s) for part in (self.train, self.validation, self.test) for s in part.sequences)


def read_set(name: str, columns: Columns | None = None) -> tuple[LabelledSequences, LabelledSequences]:
    """The training and the test part of a set.

    Args:
        name: of `SETS`, for a folder of that name in `~/.genomic_benchmarks`, which the package genomic-benchmarks
            fills; or a folder with `train` and `test` inside, each with a folder or a file for each class.
        columns: as in `read_labelled`, with the reference for sets that are lists of regions.

    Raises:
        FileNotFoundError, ValueError: the set is not here, or cannot be read.
    """
    if name in SETS:
        folder = Path(HOME).expanduser() / name
        if not folder.is_dir():
            raise FileNotFoundError(
                f"set {name!r} is not in {HOME}; download it: pip install genomic-benchmarks, then "
                f'python -c "from genomic_benchmarks.loc2seq import download_dataset; download_dataset({name!r}, 0)"'
            )
    else:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"set {name!r} is neither a folder nor one of {', '.join(SETS)}")
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise ValueError(f"set {str(folder)!r} has no folder {part!r}; a set holds train/CLASS and test/CLASS")
    train, test = (read_labelled(folder / part, columns, f"set {name!r}") for part in ("train", "test"))
    return train, test


def is_set(source: Any) -> bool:
    """Whether `source` is the name of a set, or a folder that holds `train` and `test`."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    return str(source) in SETS or ((path / "train").is_dir() and (path / "test").is_dir())


def open_splits(
    train: str | Path | Mapping[str, Any],
    test: str | Path | Mapping[str, Any] | None = None,
    *,
    columns: Columns | None = None,
    seed: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.0,
) -> Splits:
    """The three parts that a run trains on, selects on and reports.

    The validation is a share of the training part, drawn by `seed`, as in Caduceus' protocol: the test part takes no
    part in any choice. Where there is none, `test_share` of the sequences become it, the same ones for every seed; with
    a share of 0 the test part is empty.

    Args:
        train: a set's name or folder (`read_set`), or labelled sequences (`read_labelled`).
        test: labelled sequences, if `train` is not a set.

    Raises:
        ValueError: a share is out of range, a part is empty, or the test part has a label that training lacks.
    """
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
    if is_set(train):
        if test is not None or test_share:
            raise ValueError(f"{str(train)!r} is a set with a test part; leave out test and test_share")
        learned, asked = read_set(str(train), columns)
        about = "test part as given"
    else:
        learned = read_labelled(train, columns, "train")
        if test is not None:
            if test_share:
                raise ValueError("test and test_share are given; leave out one of them")
            asked, about = read_labelled(test, columns, "test"), "test part as given"
        elif test_share:
            order = np.random.default_rng(0).permutation(len(learned))
            count = round(test_share * len(learned))
            asked, learned = learned.take(order[:count]), learned.take(order[count:])
            about = f"test part: {test_share:g} of the sequences, drawn once for all seeds"
        else:
            asked, about = learned.take(()), "no test part"
    order = np.random.default_rng([seed, 1]).permutation(len(learned))
    count = round(validation_share * len(learned))
    parts = Splits(
        learned.take(order[count:]),
        learned.take(order[:count]),
        asked,
        f"{about}; validation: {validation_share:g} of training, by seed {seed}",
    )
    wanted = {"train": parts.train} | ({"validation": parts.validation} if validation_share else {})
    wanted |= {"test": parts.test} if test is not None or test_share or is_set(train) else {}
    for name, part in wanted.items():
        if not len(part):
            raise ValueError(f"the {name} part has no sequence; give more sequences or another share")
    if unknown := sorted(set(parts.test.labels) - set(learned.labels)):
        raise ValueError(f"the test part has the label {unknown[0]!r}, which the training part lacks")
    return parts
