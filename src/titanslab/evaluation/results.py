"""Files of an evaluation: samples and answers, one a line; answers are appended and read again when a run resumes."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from titanslab.files import fingerprint, write_whole
from titanslab.tasks.sample import Cell, TaskSample

Key = tuple[str, int, int]
SETTINGS, RESULTS = "settings.json", "results.jsonl"
CELLS = "cells"  # key in settings.json of the settings of each cell
MAX_CELL_TOKENS = 1 << 24  # the samples of a cell with more tokens are not kept


class ResultLog:
    """`results.jsonl` of a folder, and the settings of its results in `settings.json`.

    An unfinished last line, which a killed process leaves, is cut off. Raises ValueError for a folder of other
    settings or of cells with other samples, and for a folder that another process writes to.

    Args:
        folder: created if it does not exist.
        settings: every value that the answers depend on; JSON values.
        cells: the settings of each cell by its name; the folder may hold further cells.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RESULTS
        self._lock = hold(folder)
        try:
            self._compare(folder, settings, cells)
            self.records = read_records(folder, repair=True)
        except BaseException:
            self._lock.close()
            raise
        self._file: IO[str] | None = None

    def _compare(self, folder: Path, settings: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> None:
        settings, cells = json.loads(json.dumps([settings, cells], default=str))
        known, all_cells = folder / SETTINGS, dict(cells)
        if known.exists():
            try:
                before = json.loads(known.read_text(encoding="utf-8"))
                cells_before = before.pop(CELLS, {})
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError(f"{known} is not a JSON object; name another output folder") from error
            _refuse_changes(folder, "", before, settings)
            for name in cells.keys() & cells_before.keys():
                _refuse_changes(folder, f" of {name}", cells_before[name], cells[name])
            all_cells = cells_before | cells
            if all_cells == cells_before:
                return
        elif self.path.exists():
            raise ValueError(f"output {folder} has {RESULTS} but no {SETTINGS}; name another folder")
        write_whole(known, json.dumps({**settings, CELLS: all_cells}, indent=1) + "\n")

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records and force them to disk."""
        if self._file is None:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        for record in records:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.records.append(record)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "ResultLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.close()


def read_records(folder: Path, repair: bool = False) -> list[dict[str, Any]]:
    """The records of a folder, one per sample (its first); `repair` cuts an unfinished last line off the file."""
    path = folder / RESULTS
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if repair and whole < len(data):
        os.truncate(path, whole)
    records: dict[Key, dict[str, Any]] = {}
    for number, line in enumerate(data[:whole].decode(errors="replace").split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            key = record["task"], record["length"], record["index"]
            _ = record["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a result; remove that line or name another folder"
            ) from error
        records.setdefault(key, record)
    return list(records.values())


def hold(folder: Path) -> IO[str]:
    """Lock a folder until the returned file is closed or this process ends; ValueError if another process holds it."""
    file = open(folder / "lock", "w", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ValueError(f"another process works on {folder}; wait for it or end it") from None
    return file


def _refuse_changes(folder: Path, of: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if changed:
        first = changed[0]
        raise ValueError(
            f"output {folder} holds results{of} made with another {', '.join(changed)} "
            f"({_brief(before.get(first))}, now {_brief(now.get(first))}); name another folder"
        )


def _brief(value: Any) -> str:
    """A setting as text; for the identity of files their number, size, hash and first name."""
    if value is None or value == ["None"]:
        return "none"
    if isinstance(value, list) and value and all(isinstance(part, list) and len(part) == 3 for part in value):
        names = sorted({part[0] for part in value} - {"."})
        size = f"{sum(part[1] for part in value):,} bytes, {value[0][2][:8]}"
        return f"{len(value)} file{'s' * (len(value) > 1)} of {size}" + (f", {names[0]} ..." if names else "")
    return repr(value)


def kept_samples(folder: Path | None, cell: Cell, count: int) -> list[TaskSample]:
    """The first `count` samples of a cell, read from its file in `folder` or made and written to it.

    A second model and a resumed run read the file; its name holds the cell's settings. A damaged line and those after
    it are made again. The list is empty without a folder and for a cell of more than `MAX_CELL_TOKENS`.
    """
    if folder is None or cell.length * count > MAX_CELL_TOKENS:
        return []
    file = folder / f"{cell.name}-{fingerprint(cell.settings)}.jsonl"
    samples: list[TaskSample] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if file.exists() else ():
        try:
            sample = TaskSample.from_json(line)
        except (ValueError, KeyError, TypeError):
            break
        if sample.index != len(samples):
            break
        samples.append(sample)
    if len(samples) < count:
        samples += [cell.make(index) for index in range(len(samples), count)]
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, "".join(sample.to_json() + "\n" for sample in samples))
    return samples
