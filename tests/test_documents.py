"""Documents: every malformed JSON or TOML text gives one line that names the file, the key and the fix."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
from msgspec import Meta

from titanslab.documents import DEPTH, DocumentError, checked, parse_json, parse_toml, read_json, read_toml


@dataclass
class Result:
    steps: int
    loss: float | None = None
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    names: str | list[str] | None = None
    sizes: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ('{"steps": 1', "is not valid JSON"),
        (b"\xff\xfe{", "is not valid JSON"),
        (b"\0" * 8, "is not valid JSON"),
        ("[" * 100_000 + "]" * 100_000, f"more than {DEPTH} tables"),
        ('{"steps": ' + "[" * DEPTH + "]" * DEPTH + "}", f"more than {DEPTH} tables"),
        ('{"steps": 1, "steps": 2}', "key 'steps' stands twice"),
        ('{"steps": 1, "loss": NaN}', "loss must be a finite number, got nan"),
        ('{"steps": 1, "loss": 1e999}', "loss must be a finite number, got inf"),
        ('{"steps": 1' + "0" * 30 + "}", "steps must fit in 64 bits, got a whole number of 31 digits"),
        ('{"steps": 1' + "0" * 5000 + "}", "is not valid JSON"),
        ('{"steps": 1, "names": "\\ud800"}', "names is not Unicode text"),
        ('{"steps": 1, "\\ud800": 1}', "has a key that is not Unicode text"),
        ("[]", "must be a table, got list []"),
        ("null", "must be a table, got NoneType None"),
        ("{}", "steps is missing"),
        ('{"steps": "x"}', "steps must be a whole number, got str 'x'"),
        ('{"steps": true}', "steps must be a whole number, got bool True"),
        ('{"steps": 1.5}', "steps must be a whole number, got float 1.5"),
        ('{"steps": 1, "share": 1}', "share must be a number below 1.0, got int 1"),
        ('{"steps": 1, "share": -1}', "share must be a number of at least 0.0, got int -1"),
        ('{"steps": 1, "names": 5}', "names must be text or a list, got int 5"),
        ('{"steps": 1, "names": ["a", 5]}', "names[1] must be text, got int 5"),
        ('{"steps": 1, "sizes": {"a": "x"}}', "sizes[...] must be a whole number"),
    ],
)
def test_malformed_json_is_one_line_with_file_key_and_fix(text, words):
    with pytest.raises(DocumentError) as caught:
        parse_json(text, Result, origin="run/result.json", fix="delete it")
    message = str(caught.value)
    assert message.startswith("run/result.json")
    assert message.endswith("; delete it")
    assert words in message
    assert "\n" not in message
    assert len(message) < 400


def test_json_of_the_schema_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"steps": 3, "loss": 1, "names": ["\xc3\xa9"], "other": 1}')
    read = read_json(tmp_path / "a.json", Result)
    assert read == Result(steps=3, loss=1.0, names=["é"])
    assert type(read.loss) is float
    assert parse_json('{"loss": NaN}', origin="x", finite=False)["loss"] != 0


def test_long_files_and_missing_files(tmp_path):
    (tmp_path / "a.json").write_text('"' + "a" * 2_000_000 + '"')
    with pytest.raises(DocumentError, match=r"a\.json is longer than 1 MiB"):
        read_json(tmp_path / "a.json", limit=1 << 20)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a = 1\na = 2\n", "is not valid TOML"),
        (b"a = '\xff'\n", "is not a text file in UTF-8"),
        (b"a = " + b"[" * 50_000 + b"]" * 50_000, f"more than {DEPTH} tables"),
        (b"z" + b".z" * 5000 + b" = 1", f"more than {DEPTH} tables"),
        (b"[t]\na = nan", "t.a must be a finite number, got nan"),
        (b"[t]\na = [1, 9223372036854775808999]", "t.a[1] must fit in 64 bits"),
        (b"a = 1979-05-27", "a must be text in quotes, got the date 1979-05-27"),
    ],
)
def test_malformed_toml(tmp_path, text, words):
    with pytest.raises(DocumentError) as caught:
        parse_toml(text, origin="recipe 'r.toml'", fix="correct it")
    assert words in str(caught.value)
    (tmp_path / "r.toml").write_bytes(text)
    with pytest.raises(DocumentError, match="recipe"):
        read_toml(tmp_path / "r.toml", "recipe")


def test_toml_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf[a]\r\nb = 1\r\n")
    assert read_toml(tmp_path / "r.toml") == {"a": {"b": 1}}


def test_checked_names_its_origin():
    assert checked(1, float, "x") == 1.0
    with pytest.raises(DocumentError, match=r"^r\.toml: training\.steps must be a whole number, got str 'x'$"):
        checked("x", int, "r.toml: training.steps")
