"""Files of an evaluation: samples and answers, one a line; answers are appended and read again when a run resumes."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from titanslab.documents import checked, parse_json, read_json
from titanslab.files import fingerprint, naming, write_whole
from titanslab.locks import only_writer
from titanslab.tasks.sample import Cell, TaskSample

SETTINGS, RESULTS = "settings.json", "results.jsonl"
CELLS = "cells"  # key in settings.json of the settings of each cell
OTHER = "name another output folder"
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]


class Record(Struct):
    """A line of results.jsonl as far as tables and pictures depend on it."""

    task: Annotated[str, Meta(min_length=1)]
    length: Count
    index: Count
    target: str
    output: str
    scores: Annotated[dict[str, Annotated[float, Meta(ge=-1e9, le=1e9)]], Meta(min_length=1)]
    depth: Annotated[float, Meta(ge=0, le=100)] | None = None
    prompt_tokens: Count | None = None
    seconds: float = 0.0


MAX_CELL_TOKENS = 1 << 24  # the samples of a cell with more tokens are not kept


@contextmanager
def open_results(
    folder: Path, settings: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """The records in a folder, for `add_records`; the folder is locked until the block ends.

    An unfinished last line, which a killed process leaves, is cut off.

    Args:
        folder: created if it does not exist. It holds `results.jsonl`, and the settings of its results in
            `settings.json`.
        settings: every value that the answers depend on; JSON values.
        cells: the settings of each cell by its name; the folder may hold further cells.

    Raises:
        ValueError: the folder has other settings or cells with other samples, or another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, "output folder"):
        settings, cells = json.loads(json.dumps([settings, cells], default=str))
        known, before = folder / SETTINGS, {**settings, CELLS: {}}
        if known.exists():
            before = {CELLS: {}, **read_json(known, dict[str, Any], fix=OTHER, finite=False)}
        elif (folder / RESULTS).exists():
            raise ValueError(f"output {folder} has {RESULTS} but no {SETTINGS}; name another folder")
        kept = checked(before.pop(CELLS), dict[str, dict[str, Any]], f"{known}: {CELLS}", OTHER)
        _refuse_changes(folder, "", before, settings)
        for name in cells.keys() & kept.keys():
            _refuse_changes(folder, f" of {name}", kept[name], cells[name])
        if not known.exists() or cells.keys() - kept.keys():
            write_whole(known, json.dumps({**settings, CELLS: kept | cells}, indent=1) + "\n")
        yield read_records(folder, repair=True)


def add_records(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records to the results of a folder and force them to disk."""
    with naming(folder / RESULTS), open(folder / RESULTS, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path, repair: bool = False) -> list[dict[str, Any]]:
    """The records of a folder, one per sample (its first); `repair` cuts an unfinished last line off the file."""
    path = folder / RESULTS
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if repair and whole < len(data):
        os.truncate(path, whole)
    records: dict[tuple[str, int, int], dict[str, Any]] = {}
    names: dict[str, Set[str]] = {}  # task -> names of its scores
    for number, line in enumerate(data[:whole].decode(errors="replace").split("\n")[:-1], 1):
        where, fix = f"{path}, line {number}", "remove that line or name another folder"
        record = parse_json(line, origin=where, fix=fix)
        facts = checked(record, Record, where, fix)
        if facts.scores.keys() != (first := names.setdefault(facts.task, facts.scores.keys())):
            raise ValueError(
                f"{where}: scores has {', '.join(facts.scores)}, and lines before {', '.join(first)}; {fix}"
            )
        records.setdefault((facts.task, facts.length, facts.index), record)
    return list(records.values())


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
    files = isinstance(value, list) and value and all(isinstance(part, list) and len(part) == 3 for part in value)
    if files and all(isinstance(one, kind) for part in value for one, kind in zip(part, (str, int, str), strict=True)):
        names = sorted({part[0] for part in value} - {"."})
        size = f"{sum(part[1] for part in value):,} bytes, {value[0][2][:8]}"
        return f"{len(value)} file{'s' * (len(value) > 1)} of {size}" + (f", {names[0]} ..." if names else "")
    return repr(value)


def kept_samples(folder: Path, cell: Cell, count: int) -> list[TaskSample]:
    """The first `count` samples of a cell, read from its file in `folder` or made and written to it.

    A second model and a resumed run read the file; its name holds the cell's settings. A damaged line and those after
    it are made again. The list is empty for a cell of more than `MAX_CELL_TOKENS`.
    """
    if cell.length * count > MAX_CELL_TOKENS:
        return []
    file = folder / f"{cell.name}-{fingerprint(cell.settings)}.jsonl"
    samples: list[TaskSample] = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for line in text.split("\n")[:-1]:
        try:
            sample = TaskSample.from_json(line)
        except ValueError:
            break
        if (sample.task, sample.length, sample.index) != (cell.task, cell.length, len(samples)):
            break
        samples.append(sample)
    if len(samples) < count:
        samples += [cell.make(index) for index in range(len(samples), count)]
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, "".join(sample.to_json() + "\n" for sample in samples))
    return samples
