"""Malformed inputs in forked children, which are watched: their answers, their time, the files that they change."""

import contextlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import corpus, graft, memory, model, recipe, results, run, sequences, series, valid
from .command import DONE, FAULT, REFUSED, Answer

KINDS = {
    "memory": memory,
    "model": model,
    "recipe": recipe,
    "corpus": corpus,
    "run": run,
    "results": results,
    "series": series,
    "sequences": sequences,
    "graft": graft,
}
SHARES = {
    "memory": 20,
    "model": 14,
    "recipe": 13,
    "corpus": 10,
    "run": 9,
    "results": 5,
    "series": 11,
    "sequences": 10,
    "graft": 8,
}
TOGETHER = 25  # inputs of one child
SECONDS = 120.0  # after which an input hangs
BYTES = 12 << 30  # of memory of a child
OUTSIDE, UNPICKLED = "wrote outside of its folder", "code of an input was executed"
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True)
class Report:
    """What became of one input; `fault` is "" if all was well."""

    kind: str
    index: int
    name: str = ""
    verdict: str = ""
    fault: str = ""
    seconds: float = 0.0


def shared(number: int, kinds: list[str]) -> list[tuple[str, int]]:
    """Kind and index of `number` inputs, shared among kinds."""
    total = sum(SHARES[kind] for kind in kinds)
    return [(kind, i) for kind in kinds for i in range(max(1, round(number * SHARES[kind] / total)))]


def prepare(folder: Path) -> Path:
    """The folder of valid files inside `folder`, made in a child where it does not exist."""
    files = folder / "valid"
    if not files.exists():
        child = _CONTEXT.Process(target=_prepare, args=(folder, files))
        child.start()
        child.join()
        if child.exitcode:
            shutil.rmtree(files, ignore_errors=True)
            raise RuntimeError(f"the valid files could not be made; {child.exitcode = }")
    return files


def fuzz(cases: list[tuple[str, int]], seed: int, folder: Path) -> Iterator[Report]:
    """The reports of inputs; a child that hangs or dies is replaced."""
    files = prepare(folder)
    left = list(cases)
    while left:
        batch, left = left[:TOGETHER], left[TOGETHER:]
        mine, theirs = _CONTEXT.Pipe(duplex=False)
        child = _CONTEXT.Process(target=_batch, args=(theirs, batch, seed, files, folder))
        child.start()
        theirs.close()
        for kind, index in batch:
            begun = time.monotonic()
            try:
                answered = mine.poll(SECONDS)
                report = Report(**mine.recv()) if answered else Report(kind, index, fault=f"no end in {SECONDS:.0f} s")
            except EOFError:
                child.join()
                answered, report = False, Report(kind, index, fault=f"the process died ({child.exitcode})")
            yield report if answered else replace(report, seconds=time.monotonic() - begun)
            if not answered:
                child.kill()
                left = batch[batch.index((kind, index)) + 1 :] + left
                break
        child.join()
        mine.close()


def one(kind: str, index: int, seed: int, folder: Path) -> Report:
    """Make one input and give it to the command, in this process; the files are in `folder`/work."""
    work = folder / "work" / f"{kind}-{index}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    begun = time.monotonic()
    outside: list[str] = []
    case = KINDS[kind].make(random.Random(f"{seed} {kind} {index}"), folder / "valid", work)
    with _watched(folder, outside):
        try:
            answer = case.run()
        except Exception:  # of this package: what the command wrote cannot be read
            answer = Answer(FAULT, f"the check failed: {traceback.format_exc()[-600:]}")
    fault = answer.text if answer.verdict == FAULT else ""
    if answer.verdict == DONE and case.refuse:
        fault = "accepted"
    if outside:
        fault = f"{OUTSIDE}: {outside[:3]}"
    if (work / "unpickled").exists():
        fault = UNPICKLED
    return Report(kind, index, case.name, answer.verdict, fault, time.monotonic() - begun)


def _prepare(folder: Path, files: Path) -> None:
    _settle(folder)
    valid.make(files)


def _batch(pipe: Any, batch: list[tuple[str, int]], seed: int, files: Path, folder: Path) -> None:
    import resource

    _settle(folder)
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    for kind, index in batch:
        pipe.send(asdict(one(kind, index, seed, folder)))
        shutil.rmtree(folder / "work" / f"{kind}-{index}", ignore_errors=True)
    os._exit(0)


def _settle(folder: Path) -> None:
    """Set up a child: temporary files and the cache of tokens below `folder`, no network, warnings are no errors."""
    import huggingface_hub.constants

    from titanslab.training import sources

    tempfile.tempdir = str(folder / "temporary")
    Path(tempfile.tempdir).mkdir(parents=True, exist_ok=True)
    sources.tokens_folder = lambda: folder / "tokens"
    warnings.resetwarnings()
    warnings.simplefilter("default")
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # it has read its environment variable already


_watching: list[tuple[str, list[str]]] = []


@contextlib.contextmanager
def _watched(folder: Path, outside: list[str]) -> Iterator[None]:
    """Note files outside of `folder` that are changed; Python's audit events have no end, so the hook stays."""
    if not _watching:
        sys.addaudithook(_note)
        _watching.append(("", []))
    _watching.append((str(folder.resolve()), outside))
    try:
        yield
    finally:
        _watching.pop()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    root, outside = _watching[-1] if _watching else ("", [])
    if not root or (event not in _CHANGES and event != "open"):
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
        return  # a name inside an open folder, whose removal has an event of its own
    changed = {"os.rename": arguments[:2], "os.symlink": arguments[1:2], "os.link": arguments[1:2]}
    for path in changed.get(event, arguments[:1]):
        if isinstance(path, str | bytes | os.PathLike):
            name = os.path.abspath(os.fsdecode(path))
            if not name.startswith((root, "/dev/", "/proc/")) and "__pycache__" not in name:
                outside.append(f"{event} {name}")


_CONTEXT: Any = multiprocessing.get_context("fork") if sys.platform != "win32" else multiprocessing.get_context()

__all__ = ["DONE", "KINDS", "REFUSED", "Report", "fuzz", "one", "prepare", "shared"]
