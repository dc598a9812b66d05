"""Samples of a cell kept on disk, so that a second model or a resumed run need not make them again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from titanslab.files import fingerprint, write_whole
from titanslab.tasks.sample import TaskSample

_MAX_CELL_TOKENS = 1 << 24


class SampleCache:
    """The samples of one task and length, read from a file or made and, unless they are huge, written to it.

    Args:
        folder: where files are kept; None keeps nothing.
        name: begins the file's name.
        settings: all that the samples depend on but their index.
        make: makes sample `index`.
        num_samples: how many will be asked for.
        length: tokens of one, which decides whether the cell is too large to keep.
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        settings: Mapping[str, Any],
        make: Callable[[int], TaskSample],
        num_samples: int,
        length: int,
    ):
        self._make = make
        self._samples: list[TaskSample] = []
        if folder is None or length * num_samples > _MAX_CELL_TOKENS:
            return
        file = folder / f"{name}-{fingerprint(settings)}.jsonl"
        if file.exists():
            self._samples = _whole_samples(file)
        if len(self._samples) < num_samples:
            self._samples += [make(index) for index in range(len(self._samples), num_samples)]
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, "".join(sample.to_json() + "\n" for sample in self._samples))

    def __getitem__(self, index: int) -> TaskSample:
        return self._samples[index] if index < len(self._samples) else self._make(index)


def _whole_samples(file: Path) -> list[TaskSample]:
    """The samples in a file up to the first line that is none: those after it are made again."""
    samples: list[TaskSample] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            sample = TaskSample.from_json(line)
        except (ValueError, KeyError, TypeError):
            break
        if sample.index != len(samples):
            break
        samples.append(sample)
    return samples
