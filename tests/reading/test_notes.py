"""Notes of readings and sessions are checked before they are used."""

from pathlib import Path

import pytest

from titanslab.models.cache_file import CacheHeader
from titanslab.reading.notes import describe_notes, reading_of, session_of

TEXT = {"path": "/a.txt", "bytes": 9, "start": 0, "tokens": 4, "finished": False}


def header(notes: dict, columns: int = 10) -> CacheHeader:
    return CacheHeader({}, "", columns, True, 1.0, notes)


def test_notes_of_before_are_read():
    assert reading_of(Path("m"), header({"text": TEXT})).tokens == 4
    assert reading_of(Path("m"), header({"text": TEXT | {"learn": None, "write_scale": 2}})).write_scale == 2.0
    assert reading_of(Path("m"), header({"text": "a title"})) is None
    assert session_of(Path("s"), header({"turns": 2, "model": "m"})) == (2, {})
    manner = {"template": "!{question}", "temperature": 0}
    assert session_of(Path("s"), header({"turns": 2, "manner": manner})) == (2, manner)


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"turns": "x"}, "turns must be a whole number, got str 'x'; begin another session"),
        ({"turns": 1.5}, "turns must be a whole number"),
        ({"turns": True}, "turns must be a whole number"),
        ({"turns": -1}, "of at least 0"),
        ({"turns": 11}, "the notes name 11 turns, and the memory has read 10 tokens; begin another"),
        ({"turns": 1, "manner": []}, "manner must be a table"),
        ({"turns": 1, "manner": {"top_p": 0}}, "manner.top_p must be a number"),
        ({"turns": 1, "manner": {"max_new_tokens": 0}}, "manner.max_new_tokens must be"),
        ({"turns": 1, "manner": {"template": "x"}}, "manner.template must hold {question} once"),
    ],
)
def test_notes_of_a_session_are_checked(notes, words):
    with pytest.raises(ValueError) as error:
        session_of(Path("s"), header(notes))
    assert words in str(error.value)
    assert str(error.value).startswith("s: notes of the session") or words.startswith("the notes")


@pytest.mark.parametrize("text", [{}, {"path": 5}, None, [], "x"])
def test_any_notes_are_described(text):
    assert describe_notes({"text": text}) == "a memory"
    assert describe_notes({"turns": 3, "text": text}) == "a session of 3 turns"
    assert describe_notes({"text": TEXT}) == "the memory of a.txt"
