"""lm-eval's tasks on local files: the same YAML, with the data of a folder in place of the hub's."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from titanslab.documents import checked
from titanslab.evaluation.language.files import FIX, Row, json_lines
from titanslab.evaluation.language.tasks import LanguageTask
from titanslab.files import write_whole


def find_local_files(task: LanguageTask, folder: Path) -> list[Path]:
    """The files of a task in a folder: `TASK.jsonl` with the hub's columns, else those of the row's form.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder or a file is missing; the message says the form of the file.
    """
    if not folder.is_dir():
        fault = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"--data {str(folder)!r} {fault}; give the folder that holds {', '.join(task.files)}")
    ready, local = folder / f"{task.name}.jsonl", [folder / name for name in task.files]
    missing = [path.name for path in local if not path.is_file()]
    if ready.is_file() and (missing or _has_hub_columns(task, ready)):
        return [ready]
    if missing:
        columns = ", ".join(task.row.__struct_fields__)
        raise FileNotFoundError(
            f"--data {str(folder)!r} has no {' and no '.join(missing)}; {task.name} needs {' and '.join(task.files)} "
            f"({task.form}), or {ready.name} (a JSON object a line with {columns}); --tasks leaves the task out"
        )
    return local


def _has_hub_columns(task: LanguageTask, path: Path) -> bool:
    for _, record in json_lines(path):
        return record.keys() >= set(task.row.__struct_fields__)
    return False


def local_rows(task: LanguageTask, paths: list[Path]) -> Iterator[Row]:
    """The rows of a task with the hub's columns, each of them checked.

    Raises:
        DocumentError: a file is damaged; the message names the file, the line and the fault.
    """
    hub = len(paths) == 1 and paths[0].suffix == ".jsonl" and _has_hub_columns(task, paths[0])
    pairs: Iterable[tuple[str, Any]] = json_lines(paths[0]) if hub else task.read(paths)
    for place, row in pairs:
        yield to_builtins(checked(row, task.row, place, FIX))


def write_local_task(task: LanguageTask, paths: list[Path], base: Path, folder: Path) -> Path:
    """Write a task's rows and its YAML for lm-eval to a folder; returns the path of the YAML.

    The YAML includes lm-eval's own and changes the place of the data alone. All splits are the one file: the task
    takes its samples from the split that it takes on the hub, and no examples from the others (zero shots).

    Args:
        paths: of `find_local_files`. base: lm-eval's YAML of the task. folder: created if it does not exist.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / f"{task.name}.jsonl").resolve()
    write_whole(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in local_rows(task, paths)))
    place = {
        "include": str(base),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": dict.fromkeys(("train", "validation", "test"), str(data))},
    }
    config = folder / f"{task.name}.yaml"
    write_whole(config, yaml.safe_dump(place, sort_keys=False))
    return config
