"""Commands in forked children of the test process, where everything is imported already; and waiting for a process."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

_CONTEXT = multiprocessing.get_context("fork") if sys.platform != "win32" else multiprocessing.get_context()


class Child:
    """`titans ARGUMENTS` in a child; stdout and stderr go to files in `folder`."""

    def __init__(self, folder: Path, *arguments: object, stdin: str = "", rank: "Rank | None" = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "in").write_text(stdin)
        self.process = _CONTEXT.Process(target=_run, args=(folder, [str(a) for a in arguments], rank))
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """The exit code; the child is killed after `seconds`."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        return self.process.exitcode or 0

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.exitcode

    @property
    def out(self) -> str:
        """What it printed so far."""
        return (self.folder / "out").read_text() if (self.folder / "out").exists() else ""

    @property
    def err(self) -> str:
        """What it said on stderr so far."""
        return (self.folder / "err").read_text() if (self.folder / "err").exists() else ""


class Rank(NamedTuple):
    """The place of a child among several that train together over gloo, as torchrun tells its processes."""

    rank: int
    count: int
    port: int


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(count: int, folder: Path, *arguments: object) -> list[Child]:
    """`titans ARGUMENTS` in `count` children that train together; their files go to folders in `folder`."""
    port = free_port()
    ranks = [Rank(rank, count, port) for rank in range(count)]
    return [Child(folder / str(rank.rank), *arguments, rank=rank) for rank in ranks]


def join(rank: Rank) -> None:
    """Take the place among the others."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):  # what the test process has set
        state._reset_state()
    place = {"RANK": rank.rank, "LOCAL_RANK": rank.rank, "WORLD_SIZE": rank.count, "LOCAL_WORLD_SIZE": rank.count}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(rank.port), ACCELERATE_USE_CPU="true")


def _run(folder: Path, arguments: list[str], rank: Rank | None = None) -> None:
    from titanslab.cli import main

    if rank is not None:
        join(rank)
    for number, (name, flags) in enumerate((("in", os.O_RDONLY), ("out", os.O_RDWR), ("err", os.O_RDWR))):
        os.dup2(os.open(folder / name, flags | (os.O_CREAT if number else 0), 0o644), number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    try:
        main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for_lines(process: subprocess.Popen | Child, path: Path, count: int, seconds: float = 200) -> None:
    """Wait until a file has `count` lines, the process that writes it has ended, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
