"""`python -m tests.fuzz.full_disk PLACE`: commands on a file system that fills up, at every point of their writing.

PLACE is an empty folder on a small file system of its own, such as `mount -t tmpfs -o size=16m tmpfs PLACE`. Each
command runs there with room for a part of its files. It must then be refused with a line that says so, keep the file
that was there, and leave no half-written file; with room again it must give the files of a run that nothing disturbed.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import valid
from .command import DONE, REFUSED, Answer, titans
from .driver import _CONTEXT, _settle, prepare
from .races import leftovers, notes, tensors
from .results import answers
from .run import losses

SAYS = ("No space left", "space is left")
BLOCK = 4096  # bytes that a file system gives at once


@dataclass(frozen=True)
class Work:
    """A command that writes to a place.

    Args:
        words: the command into a place.
        again: the command that goes on, or begins anew, once there is room.
        result: what is in the place at the end.
        before: the file or folder that is in the place at the start.
        keeps: whether that must be unharmed after a refusal.
        stdin: lines that the command reads.
    """

    words: Callable[[Path], list[object]]
    again: Callable[[Path], list[object]]
    result: Callable[[Path], Any]
    before: Path | None = None
    keeps: bool = False
    stdin: str = ""


def works(files: Path) -> dict[str, Work]:
    """The commands by name."""
    model, text, book = files / valid.MODEL, files / valid.TEXT, files / valid.BOOK
    read: list[object] = ["read", text, "--model", model, "--save"]
    ask: list[object] = ["ask", "--memory", book, "Who came?", "--max-new-tokens", 2, "--save"]
    chat: list[object] = ["chat", "--model", model, "--max-new-tokens", 2, "--session"]

    def resumed(place: Path) -> list[object]:
        goes_on = (place / "recipe.toml").exists()
        return ["train", *([] if goes_on else [files / valid.RECIPE]), "--output", place, *(["--resume"] * goes_on)]

    def trained(place: Path) -> Any:
        return losses(place), tensors(place / "model.safetensors")

    def same(words: list[object], *more: object) -> dict[str, Any]:
        return {"words": lambda place: [*words, place, *more], "again": lambda place: [*words, place, *more]}

    def names(place: Path) -> list[str]:
        return sorted(path.name for path in place.iterdir())

    return {
        "train": Work(lambda place: ["train", files / valid.RECIPE, "--output", place], resumed, trained),
        "train, resumed": Work(resumed, resumed, trained, files / valid.HALF),
        "read": Work(**same(read), result=tensors),
        "read over a memory": Work(**same(read, "--overwrite"), result=tensors, before=files / valid.TALK, keeps=True),
        "read, resumed": Work(**same(read, "--resume"), result=tensors, before=files / valid.HALF_BOOK, keeps=True),
        "ask": Work(**same(ask), result=tensors),
        "chat": Work(
            **same(chat), result=lambda place: notes(place)["turns"] > 2, before=files / valid.TALK, stdin="a\n"
        ),
        "evaluate niah": Work(**same([*valid.NIAH, "--model", model, "--output"]), result=answers),
        "evaluate": Work(**same(["evaluate", "--model", model, "--data", text, "-c", 64, "--output"]), result=names),
        "inspect": Work(**same(["inspect", text, "--model", model, "--output"]), result=names),
        "tokenizer": Work(**same(["tokenizer", text, "--vocab", 300, "--output"]), result=names),
    }


def fill(place: Path, free: int) -> Path:
    """Leave `free` bytes on the file system of `place`; returns the file that takes the rest."""
    filler, system = place / "filler", os.statvfs(place)
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    try:
        if (size := system.f_bavail * system.f_frsize - free) > 0:
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)
    return filler


def in_child(words: list[object], stdin: str, folder: Path) -> Answer:
    """Run `titans WORDS` in a forked process."""
    mine, theirs = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=_run, args=(theirs, words, stdin, folder))
    child.start()
    theirs.close()
    try:
        return Answer(*mine.recv())
    except EOFError:
        child.join()
        return Answer("fault", f"the process died ({child.exitcode})")


def _run(pipe: Any, words: list[object], stdin: str, folder: Path) -> None:
    _settle(folder)
    answer = titans(*words, stdin=stdin)
    pipe.send((answer.verdict, answer.text, answer.out))
    os._exit(0)


def one(work: Work, place: Path, free: int, whole: Any, folder: Path) -> tuple[str, str]:
    """Run a command with `free` bytes and again with room; returns how the first ended, and a fault or ""."""
    start(work, place)
    kept = work.before.read_bytes() if work.before and work.keeps else b""
    filler = fill(place.parent, free)
    answer = in_child(work.words(place), work.stdin, folder)
    filler.unlink()
    if answer.verdict not in (DONE, REFUSED):
        return answer.verdict, answer.text
    if answer.verdict == REFUSED:
        if not any(words in answer.text for words in SAYS):
            return answer.verdict, answer.text
        if work.keeps and place.read_bytes() != kept:
            return answer.verdict, "the file that was there has changed"
        if left := leftovers(place):
            return answer.verdict, f"left behind: {left}"
        second = in_child(work.again(place), work.stdin, folder)
        if second.verdict != DONE:
            return answer.verdict, f"with room again: {second.text} (before: {answer.text})"
    try:
        found = work.result(place)
    except Exception as error:  # any fault of a file that was written
        return answer.verdict, f"the result cannot be read: {error!r}"
    return answer.verdict, "" if found == whole else "another result than the undisturbed one"


def start(work: Work, place: Path) -> None:
    """Empty the file system of `place` and put there the file or folder that the command finds."""
    for path in place.parent.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if work.before is not None:
        copy: Any = shutil.copytree if work.before.is_dir() else shutil.copy
        copy(work.before, place)


def used(place: Path) -> int:
    """Bytes that the file system of `place` holds."""
    system = os.statvfs(place.parent)
    return (system.f_blocks - system.f_bfree) * system.f_frsize


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.full_disk", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("place", type=Path, help="an empty folder on a small file system of its own")
    parser.add_argument("--points", type=int, default=24, help="amounts of free space for each command")
    parser.add_argument("--only", help="one command alone, by its name")
    given = parser.parse_args()
    if next(given.place.iterdir(), None) is not None:
        parser.error(f"{given.place} is not empty")
    from .__main__ import warm_up

    warm_up()
    folder = Path(tempfile.mkdtemp(prefix="titans-full-"))
    known, faults = works(prepare(folder)), 0
    place = given.place.resolve() / "place"
    print(f"{'command':22}{'points':>8}{'refused':>9}{'faults':>8}", flush=True)
    for name, work in known.items():
        if given.only not in (None, name):
            continue
        start(work, place)
        before = used(place)
        answer = in_child(work.words(place), work.stdin, folder)
        if answer.verdict != DONE:
            raise RuntimeError(f"{name}: {answer.text}")
        whole, needs = work.result(place), used(place) - before + 4 * BLOCK
        points = sorted({round(needs * i / given.points / BLOCK) * BLOCK for i in range(given.points)})
        ends = [(free, *one(work, place, free, whole, folder)) for free in points]
        bad = [(free, fault) for free, _, fault in ends if fault]
        faults += len(bad)
        refused = sum(verdict == REFUSED for _, verdict, _ in ends)
        print(f"{name:22}{len(points):8}{refused:9}{len(bad):8}", flush=True)
        for free, fault in bad:
            print(f"    {free:,} bytes free: {fault[:300]}", flush=True)
    start(Work(lambda place: [], lambda place: [], str), place)
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
