"""Tensors whose rows lie in several safetensors files, one of each writing process, for any number of readers."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from titanslab.documents import reason

ROWS = "rows"  # key of the metadata in a file's header
Piece = tuple[int, int]  # the first row of a piece, and the rows of the whole tensor


def file_of(name: str, process: int, processes: int) -> str:
    """The name of a process's file; one process alone writes `name` itself."""
    if processes == 1:
        return name
    stem, _, kind = name.rpartition(".")
    return f"{stem}-{process + 1:05d}-of-{processes:05d}.{kind}"


def files_of(folder: Path, name: str) -> list[Path]:
    """The files that hold `name`: itself, or those of all processes; ValueError where one of them is missing."""
    if (folder / name).exists():
        return [folder / name]
    stem, _, kind = name.rpartition(".")
    found = sorted(folder.glob(f"{stem}-?????-of-?????.{kind}"))
    if not found:
        return [folder / name]
    wanted = [folder / file_of(name, process, len(found)) for process in range(len(found))]
    if found != wanted:
        last = found[-1].name
        raise ValueError(f"the files of {name!r} are not all there: {len(found)} are found, the last one is {last!r}")
    return wanted


def save_pieces(path: Path, tensors: dict[str, Tensor], pieces: dict[str, Piece]) -> None:
    """Write tensors to a file; `pieces` tells of those that are rows of a larger tensor which these are."""
    save_file(tensors, path, metadata={ROWS: json.dumps(pieces)} if pieces else None)


class Pieces:
    """The tensors in the files of `save_pieces`, read by whole rows.

    Attributes:
        shapes: of the whole tensors, by name.
    """

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._found: dict[str, list[tuple[int, int, Any]]] = {}  # first and last row, and the open file
        self._files = files
        self._open = ExitStack()

    def __enter__(self) -> "Pieces":
        for path in self._files:
            try:
                file: Any = self._open.enter_context(safe_open(path, "pt"))
                pieces = json.loads((file.metadata() or {}).get(ROWS, "{}"))
                for name in file.keys():  # noqa: SIM118 - not a dict
                    self._add(name, file, pieces.get(name))
            except (SafetensorError, ValueError, TypeError, AttributeError) as error:
                self._open.close()
                raise ValueError(f"{path.name} is not a whole safetensors file: {reason(error, 200)}") from None
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _add(self, name: str, file: Any, piece: Any) -> None:
        shape = tuple(file.get_slice(name).get_shape())
        first, rows = (0, shape[0] if shape else 1) if piece is None else piece
        if not isinstance(first, int) or not isinstance(rows, int) or not 0 <= first < rows:
            raise ValueError(f"its rows of {name!r} are {piece!r}")
        whole = (rows, *shape[1:]) if shape else ()
        if self.shapes.setdefault(name, whole) != whole:
            raise ValueError(f"its piece of {name!r} belongs to shape {list(whole)}, others to {self.shapes[name]}")
        self._found.setdefault(name, []).append((first, first + (shape[0] if shape else 1), file))

    def check(self) -> None:
        """ValueError unless the pieces of each tensor are all of its rows, each once."""
        for name, found in self._found.items():
            end = 0
            for first, last, _ in sorted(found, key=lambda piece: piece[:2]):
                if first != end:
                    raise ValueError(
                        f"rows {min(first, end)} to {max(first, end)} of {name!r} are missing or there twice"
                    )
                end = last
            if self.shapes[name] and end != self.shapes[name][0]:
                raise ValueError(f"rows {end} to {self.shapes[name][0]} of {name!r} are missing")

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A whole tensor, or its `rows` alone."""
        found = sorted(self._found[name], key=lambda piece: piece[:2])
        if not self.shapes[name]:
            return found[0][2].get_tensor(name)
        start, stop = (0, self.shapes[name][0]) if rows is None else (rows.start, rows.stop)
        parts = [
            file.get_slice(name)[max(start, first) - first : min(stop, last) - first]
            for first, last, file in found
            if first < stop and start < last
        ]
        if not parts:  # a process that holds no row of a short tensor
            return found[0][2].get_slice(name)[0:0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
