"""Results of an evaluation, one line a sample: appended as they come, read back to go on."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

Key = tuple[str, int, int]
SETTINGS, RESULTS = "settings.json", "results.jsonl"


class ResultLog:
    """`results.jsonl` in a folder, with the settings it was made under.

    A line that was being written when the process died is dropped; a folder made under other settings is
    refused.

    Args:
        folder: made where missing.
        settings: what decides an answer; JSON values.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RESULTS
        self.records: list[dict[str, Any]] = []
        settings = json.loads(json.dumps(settings, default=str))
        known = folder / SETTINGS
        if known.exists():
            before = _load_settings(known)
            changed = sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k))
            if changed:
                raise ValueError(
                    f"output {folder} holds results made with another {', '.join(changed)} "
                    f"({before.get(changed[0])!r}, now {settings.get(changed[0])!r}); name another folder"
                )
        elif self.path.exists():
            raise ValueError(f"output {folder} has {RESULTS} but no {SETTINGS}; name another folder")
        else:
            write_whole(known, json.dumps(settings, indent=1) + "\n")
        if self.path.exists():
            self._read()
        self._file: IO[str] | None = None

    def done(self) -> set[Key]:
        """(task, length, index) of the finished samples."""
        return {(r["task"], r["length"], r["index"]) for r in self.records}

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records and bring them to disk."""
        if self._file is None:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        for record in records:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.records.append(record)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "ResultLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        for number, line in enumerate(data[:whole].decode(errors="replace").split("\n")[:-1], 1):
            try:
                record = json.loads(line)
                _ = record["task"], record["length"], record["index"], record["scores"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is not a result; remove that line or name another folder"
                ) from error
            self.records.append(record)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _load_settings(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON; name another output folder") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} is not a JSON object; name another output folder")
    return loaded
