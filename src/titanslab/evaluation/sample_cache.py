"""Samples on disk: a second model and a resumed run read the samples of a cell instead of making them again."""

from pathlib import Path

from titanslab.files import fingerprint, write_whole
from titanslab.tasks.sample import Cell, TaskSample

_MAX_CELL_TOKENS = 1 << 24  # a cell with more tokens is not written


class SampleCache:
    """The first samples of a cell, read from a file or made; new ones are written unless the cell is too large.

    Args:
        folder: of the files; None = no file is read or written.
        cell: the cell; its name and settings name the file.
        num_samples: number of samples that the file should hold.
    """

    def __init__(self, folder: Path | None, cell: Cell, num_samples: int):
        self._make = cell.make
        self._samples: list[TaskSample] = []
        if folder is None or cell.length * num_samples > _MAX_CELL_TOKENS:
            return
        file = folder / f"{cell.name}-{fingerprint(cell.settings)}.jsonl"
        if file.exists():
            self._samples = _whole_samples(file)
        if len(self._samples) < num_samples:
            self._samples += [cell.make(index) for index in range(len(self._samples), num_samples)]
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, "".join(sample.to_json() + "\n" for sample in self._samples))

    def __getitem__(self, index: int) -> TaskSample:
        return self._samples[index] if index < len(self._samples) else self._make(index)


def _whole_samples(file: Path) -> list[TaskSample]:
    """The samples of a file before its first damaged line."""
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
