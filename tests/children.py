"""Commands in forked children of the test process, where everything is imported already; and waiting for a process."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

_CONTEXT = multiprocessing.get_context("fork") if sys.platform != "win32" else multiprocessing.get_context()


class Child:
    """`titans ARGUMENTS` in a child; stdout and stderr go to files in `folder`."""

    def __init__(self, folder: Path, *arguments: object, stdin: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "in").write_text(stdin)
        self.process = _CONTEXT.Process(target=_run, args=(folder, [str(a) for a in arguments]))
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """The exit code; the child is killed after `seconds`."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        return self.process.exitcode or 0

    @property
    def out(self) -> str:
        """What it printed so far."""
        return (self.folder / "out").read_text() if (self.folder / "out").exists() else ""

    @property
    def err(self) -> str:
        """What it said on stderr so far."""
        return (self.folder / "err").read_text() if (self.folder / "err").exists() else ""


def _run(folder: Path, arguments: list[str]) -> None:
    from titanslab.cli import main

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


def wait_for_lines(process: subprocess.Popen, path: Path, count: int, seconds: float = 200) -> None:
    """Wait until a file has `count` lines, the process that writes it has ended, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
