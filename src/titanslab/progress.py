"""The one progress bar of the commands, and the type of the function that work is reported to."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called while work goes on.

    Args:
        done: amount of work done so far.
        total: amount of work in all, in the same unit; None where it is not known.
        note: a short text about the work just done; None keeps the text of the call before.
    """

    def __call__(self, done: float, total: float | None, note: str | None = None, /) -> None: ...


def bar(
    title: str,
    unit: str = "",
    *,
    start: float | None = 0.0,
    every: float | None = 10.0,
    keep: bool = False,
    begin: bool = False,
) -> AbstractContextManager[Progress]:
    """Show on stderr how far work is, how fast it goes and the time left: a bar on a terminal, lines elsewhere.

    Args:
        title: the name of the work; spaces at its end align the bars of several works.
        unit: of the reported amounts, such as "tokens"; "bytes" are shown in kB, MB, ...; "" shows shares alone.
        start: amount done before the bar opened; None takes the first report, as when work is resumed at a place
            that is known only then.
        every: seconds between lines without a terminal; None prints a line for each report that has a note.
        keep: leave the finished bar on the screen, and print a last line without a terminal.
        begin: print a line for the first report too, without a terminal.
    """
    pace = _Pace(unit, start)
    if sys.stderr.isatty():
        return _on_terminal(title, pace, keep)
    return _in_lines(title.strip(), pace, every, keep, begin)


@contextmanager
def bar_from_first_report(title: str, unit: str = "") -> Iterator[Progress]:
    """A kept bar that opens when the first report comes, for work that may turn out to be done already.

    Without a terminal it prints a line at the beginning and at the end too.
    """
    with ExitStack() as stack:
        show: Progress | None = None

        def report(done: float, total: float | None, note: str | None = None, /) -> None:
            nonlocal show
            if show is None:
                show = stack.enter_context(bar(title, unit, start=None, keep=True, begin=True))
            show(done, total, note)

        yield report


class _Pace:
    """Amounts as text, and the mean speed since the work began."""

    def __init__(self, unit: str, start: float | None) -> None:
        self.unit, self.start, self.begin = unit, start, time.perf_counter()

    def speed(self, done: float) -> float:
        """Units per second; 0 where nothing was measured yet."""
        if self.start is None:
            self.start, self.begin = done, time.perf_counter()
        return (done - self.start) / max(time.perf_counter() - self.begin, 1e-9)

    def amounts(self, done: float, total: float | None, of: str) -> list[str]:
        """The amount done `of` the total, and the speed; nothing for shares."""
        if not self.unit:
            return []
        speed = self.speed(done)
        counts = of.join(self._text(amount) for amount in (done, total) if amount is not None)
        named = counts if self.unit == "bytes" else f"{counts} {self.unit}"
        return [named, f"{self._text(speed)}/s"] if speed > 0 else [named]

    def _text(self, amount: float) -> str:
        if self.unit == "bytes":
            from rich.filesize import decimal

            return decimal(int(amount))
        return f"{amount:.2g}" if 0 < amount < 1 else f"{int(amount):,}"


TIMES = len("0:00:00 elapsed  0:00:00 left") + 4  # with the spaces between the columns
WIDEST, NARROWEST = 40, 8  # of the bar


def _fitted(room: int, count: str, speed: list[str], note: str) -> tuple[str, int, str]:
    """The amounts, the width of the bar and the note in `room` columns: speed and note give way to the times."""
    room -= len(count) + 1
    both = "  ".join([count, *speed])
    if room - (len(both) - len(count)) >= NARROWEST:
        room -= len(both) - len(count)
        count = both
    width = min(WIDEST, max(NARROWEST, room - len(note) - 1), max(1, room))
    shown = note.split(", ")
    while shown and len(", ".join(shown)) > room - width - 1:
        shown.pop()  # a number that is cut would be another number
    return count, width, ", ".join(shown)


@contextmanager
def _on_terminal(title: str, pace: _Pace, keep: bool) -> Iterator[Progress]:
    from rich import progress as columns
    from rich.console import Console

    console, drawn = Console(stderr=True), columns.BarColumn()
    display = columns.Progress(
        columns.TextColumn("{task.description}", markup=False),
        drawn,
        columns.TextColumn("{task.fields[amounts]}", markup=False),
        columns.TimeElapsedColumn(),
        columns.TextColumn("elapsed "),
        columns.TimeRemainingColumn(),
        columns.TextColumn("left"),
        columns.TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=not keep,
    )
    text = ""
    with display:
        task = display.add_task(title, total=None, completed=int(pace.start or 0), amounts="", note="")

        def show(done: float, total: float | None, note: str | None = None, /) -> None:
            nonlocal text
            text = text if note is None else note
            count, *speed = pace.amounts(done, total, "/") or [""]
            amounts, drawn.bar_width, shown = _fitted(console.width - len(title) - TIMES, count, speed, text)
            display.update(task, completed=done, total=total, amounts=amounts, note=shown)

        yield show


@contextmanager
def _in_lines(title: str, pace: _Pace, every: float | None, keep: bool, begin: bool) -> Iterator[Progress]:
    printed, text = -math.inf if begin else time.perf_counter(), ""
    waiting: tuple[float, float | None] | None = None  # reported and not printed

    def write(done: float, total: float | None) -> None:
        nonlocal printed, waiting
        printed, waiting = time.perf_counter(), None
        parts, speed = [*pace.amounts(done, total, " of "), text], pace.speed(done)
        if total is not None and speed > 0:
            parts.append(f"{duration((total - done) / speed)} left")
        print(f"{title}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    def show(done: float, total: float | None, note: str | None = None, /) -> None:
        nonlocal text, waiting
        pace.speed(done)  # the first report may be where the work began
        waiting, text = (done, total), text if note is None else note
        due = (done > 0 or begin) and every is not None and time.perf_counter() - printed >= every
        if due or (every is None and note is not None):
            write(done, total)

    yield show
    if keep and waiting is not None and waiting[1] is not None and waiting[0] >= waiting[1]:
        write(*waiting)


def duration(seconds: float) -> str:
    """Seconds as text: "9 s", "2 min 05 s", "1 h 20 min"."""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
