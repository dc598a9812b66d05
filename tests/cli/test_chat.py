"""`titans chat` on a terminal: editing, commands, Ctrl-C and Ctrl-D; and what it keeps."""

import fcntl
import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from functools import partial

import torch

from titanslab import TitansCache

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\b]")


class Terminal:
    """A command on a terminal of its own; `said` is everything that it wrote so far, without control sequences."""

    def __init__(self, words, state, columns=1000):
        ours, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "TITANS_STATE": str(state), "OMP_NUM_THREADS": "1"}
        environment["COLUMNS"] = str(columns)
        environment.pop("PYTHONWARNINGS", None)
        command = [sys.executable, "-m", "titanslab.cli", *map(str, words)]
        options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
        self.process = subprocess.Popen(
            command, env=environment, preexec_fn=partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0), **options
        )
        os.close(theirs)
        self.ours, self.raw = ours, b""

    @property
    def said(self):
        return CONTROL.sub("", self.raw.decode(errors="replace"))

    def wait(self, text="", last=False):
        """Read until `text` and, but for the `last` call, a new prompt were written after the call before."""
        start, end = len(self.raw), time.monotonic() + 30
        while True:
            new = CONTROL.sub("", self.raw[start:].decode(errors="replace"))
            if text in new and (last or new.rstrip().endswith(">")) and not select.select([self.ours], [], [], 0.3)[0]:
                return
            assert time.monotonic() < end, f"no {text!r} in {self.said}"
            if not self._read():
                assert last, self.said
                return

    def _read(self):
        if not select.select([self.ours], [], [], 1.0)[0]:
            return True
        try:
            new = os.read(self.ours, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += new
        return bool(new)

    def type(self, keys, answer="", last=False):
        os.write(self.ours, keys.encode())
        self.wait(answer, last)

    def close(self):
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            os.close(self.ours)


def test_a_talk_on_a_terminal(talker, tmp_path):
    state, kept = tmp_path / "state", tmp_path / "kept.memory"
    words = ("chat", "--model", talker, "--max-new-tokens", "4", "--temperature", "0")
    talk = Terminal(words, state)
    talk.wait("/help lists the commands, Ctrl-D ends\n")
    talk.type("one\r")
    talk.type("\x1b[A\r")  # the line before, from the history
    talk.type("quit\r", "type /quit to end")
    talk.type("/help\r", "/forget")
    talk.type("/me\t\r", "2 turns")  # completed to /memory
    talk.type("/nothing\r", "is no command")
    talk.type(f"/save {kept}\r", f"written: {kept}")
    talk.type(f"/save {kept}\r", "give another name")
    talk.type(" quit\r")  # a text, as the remark says
    talk.type("/memory\r", "3 turns")
    talk.type("\x03", "Ctrl-D or /quit ends")
    talk.type("/forget\r", "3 turns forgotten; the file is kept as")
    talk.type("three\r")
    talk.type("\x04", "1 turn is kept in", last=True)
    assert talk.close() == 0
    (session,) = (state / "titanslab" / "sessions").glob("*.session")
    assert f"go on with: titans chat --session {session}" in talk.said
    assert TitansCache.header(session).notes["turns"] == 1
    assert TitansCache.header(session).notes["manner"] == {"max_new_tokens": 4, "temperature": 0.0}
    assert TitansCache.header(kept).columns > TitansCache.header(session).columns
    assert [line[1:] for line in (state / "titanslab" / "chat.history").read_text().splitlines() if line[:1] == "+"][
        :2
    ] == ["one", "quit"]


def test_ctrl_c_stops_an_answer_alone(talker, tmp_path):
    session = tmp_path / "a.session"
    talk = Terminal(("chat", "--model", talker, "--session", session, "--max-new-tokens", "1000000"), tmp_path)
    talk.wait("Ctrl-D ends\n")
    os.write(talk.ours, b"one\r")
    time.sleep(3)
    talk.type("\x03", "stopped; this turn is not kept")
    talk.type("/quit\r", "nothing was said yet", last=True)
    assert talk.close() == 0
    assert not session.exists()


def test_a_pipe_is_text_and_has_a_session_too(titans, talker, tmp_path, monkeypatch):
    monkeypatch.setenv("TITANS_STATE", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\nexit\n"))
    code, out, err = titans("chat", "--model", talker, "--max-new-tokens", "2")
    assert code == 0, err
    assert len(out.split("\n")) >= 3
    (session,) = (tmp_path / "titanslab" / "sessions").glob("*.session")
    assert err.startswith(f"session {session} (new)\n")
    assert TitansCache.header(session).notes["turns"] == 2  # commands are for a terminal


def test_an_empty_answer_says_so_and_why(titans, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TITANS_STATE", str(tmp_path))

    def nothing(model, tokenizer, cache, text, sampling, streamer=None):
        streamer.end()
        return " ", model.read(torch.tensor([[1]]), cache)

    monkeypatch.setattr("titanslab.reading.answer.answer", nothing)
    monkeypatch.setattr("titanslab.reading.session.answer", nothing)
    (tmp_path / "a.txt").write_text("a text")
    memory = tmp_path / "a.memory"
    assert titans("read", tmp_path / "a.txt", "-m", trained, "--save", memory)[0] == 0
    code, out, err = titans("ask", "--memory", memory, "Who?")
    assert (code, out) == (0, "\n")
    assert "the model ended it at once after reading '\\n\\nWho?\\n'" in err
    assert "--template ' {question}'" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    code, _, err = titans("chat", "--model", trained)
    assert code == 0
    assert err.count("ended at once") == 1


def test_remarks_are_broken_between_words(talker, tmp_path):
    talk = Terminal(("chat", "--model", talker, "--session", tmp_path / "a.session"), tmp_path, columns=60)
    talk.wait("Ctrl-D ends\n")
    talk.type("/help\r", "always read as text")
    remarks = [line for line in talk.said.splitlines() if line and line[0] not in ">"]
    assert max(map(len, remarks)) <= max(60, len(str(tmp_path / "a.session")))
    assert "\n            " in talk.said  # the second line of a command's text
    talk.type("/nothing\r", "is no command")
    talk.type("/quit\r", "nothing was said yet", last=True)
    assert talk.close() == 0
