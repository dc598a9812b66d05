"""The progress bar: lines without a terminal, a bar on one, amounts, speed and time left."""

import io
import re
import sys
from contextlib import suppress

import pytest

from titanslab import progress
from titanslab.progress import bar, bar_from_first_report, duration


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_every_ten_seconds(clock, capsys):
    with bar("reading", "tokens") as show:
        for second in range(31):
            clock.now = 100.0 + second
            show(second * 1000, 40_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reading: 10,000 of 40,000 tokens, 1,000/s, 30 s left",
        "reading: 20,000 of 40,000 tokens, 1,000/s, 20 s left",
        "reading: 30,000 of 40,000 tokens, 1,000/s, 10 s left",
    ]


def test_short_work_prints_nothing(clock, capsys):
    with bar("reading", "tokens") as show:
        clock.now += 9
        show(5, 5)
    assert capsys.readouterr().err == ""


def test_bytes_and_an_unknown_total(clock, capsys):
    with bar("reading", "bytes") as show:
        clock.now += 20
        show(3_000_000, None, "a note")
        clock.now += 10
        show(6_000_000, 12_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 3.0 MB, 150.0 kB/s, a note",
        "reading: 6.0 MB of 12.0 MB, 200.0 kB/s, a note, 30 s left",
    ]


def test_resumed_work_is_timed_from_its_first_report(clock, capsys):
    """Steps 90 to 92 took 20 s; the 90 before them took no time here."""
    with bar("training", "steps", start=90) as show:
        clock.now += 20
        show(92, 100)
    with bar("training", "steps", start=None) as show:
        clock.now += 5
        show(90, 100)
        clock.now += 20
        show(92, 100)
    line = "training: 92 of 100 steps, 0.1/s, 1 min 20 s left"
    assert capsys.readouterr().err.splitlines() == [line, line]


def test_a_line_for_every_note(clock, capsys):
    with bar("training", "steps", every=None, keep=True) as show:
        for step in range(1, 5):
            clock.now += 1
            show(step, 4)
            if step % 2 == 0:
                show(step, 4, f"loss {step}")
    assert capsys.readouterr().err.splitlines() == [
        "training: 2 of 4 steps, 1/s, loss 2, 2 s left",
        "training: 4 of 4 steps, 1/s, loss 4, 0 s left",
    ]


def test_the_end_of_kept_work_is_printed_and_that_of_broken_work_is_not(clock, capsys):
    with bar("fitting   ", keep=True) as show:
        clock.now += 2
        show(1.0, 1.0, "step 3")
    with suppress(KeyError), bar("fitting", keep=True) as show:
        clock.now += 2
        show(0.5, 1.0, "step 3")
        raise KeyError
    assert capsys.readouterr().err.splitlines() == ["fitting: step 3, 0 s left"]


def test_work_that_is_done_already_prints_nothing_and_other_work_its_begin_and_end(clock, capsys):
    with bar_from_first_report("tokenizing", "bytes"):
        clock.now += 20
    assert capsys.readouterr().err == ""
    with bar_from_first_report("tokenizing", "bytes") as show:
        clock.now += 20
        for done in (0, 1_000_000, 2_000_000):
            clock.now += 4
            show(done, 2_000_000)
    with bar_from_first_report("tokenizing", "documents") as show:
        show(50, None, "waiting")
    assert capsys.readouterr().err.splitlines() == [
        "tokenizing: 0 bytes of 2.0 MB",
        "tokenizing: 2.0 MB of 2.0 MB, 250.0 kB/s, 0 s left",
        "tokenizing: 50 documents, waiting",
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_on_a_terminal_it_is_a_bar(keep, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with bar("reading {a} [b].txt", "tokens", keep=keep) as show:
        show(1_000, 4_000, "[half]")
        show(2_000, 4_000)
    text = sys.stderr.getvalue()
    assert "reading {a} [b].txt" in text
    assert "2,000/4,000 tokens" in text
    assert "[half]" in text
    assert "left" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (65, "1 min 05 s"), (3600, "1 h 00 min"), (7260, "2 h 01 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("columns", [70, 80, 100, 140])
def test_the_times_are_never_cut_on_a_narrow_terminal(columns, monkeypatch):
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    with bar("reading a.txt", "bytes", keep=True) as show:
        show(141_300, 608_600, "45,056 tokens, 6,940 tokens/s")
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue()).strip().splitlines()[-1]
    assert re.search(r"141\.3 kB/608\.6 kB .*0:00:0\d elapsed +\S+ left", last), last
    assert "…" not in last
    assert len(last) <= columns
    assert ("6,940 tokens/s" in last) == (columns >= 140)
    assert last.endswith(("left", "45,056 tokens", "6,940 tokens/s"))
