"""The tutorial followed block by block, with a local download, a shorter training and a smaller measurement."""

from pathlib import Path

import pytest

from pages import blocks, shell_with

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
SENTENCES = "The light of the house was seen from the sea. Nobody knew who had put it there. It was a cold night.\n"
CURL = '#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -sSLo ] && out="$2"; shift; done\ncp "$TEXT" "$out"\n'
SHORTER = (
    ("steps = 400", "steps = 2"),
    ("batch_size = 16", "batch_size = 2"),
    ("sequence_length = 2048", "sequence_length = 1024"),
    ("min_length = 192", "min_length = 640"),
    ("later_min_length = 512", "later_min_length = 640"),
    ("lengths 2k,8k,32k --samples 10", "lengths 1k --samples 1"),
    ("lengths 2k,8k --samples 10", "lengths 1k --samples 1"),
)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """An empty folder, with a `curl` that copies a text; runs a block there."""
    text = tmp_path / "text.txt"
    text.write_text(SENTENCES * 300)
    monkeypatch.setenv("TEXT", str(text))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return shell_with(tmp_path / "programs", monkeypatch, curl=CURL)


def test_every_block_works(shell) -> None:
    said, scope = "", {}
    steps = [b for b in blocks(PAGE) if "pip install" not in b.code]  # what it installs is what runs this test
    assert len(steps) > 10
    for block in steps:
        code = block.code
        for found, shorter in SHORTER:
            code = code.replace(found, shorter)
        if block.language == "toml":
            assert "Save this as `needle.toml`" in block.before
            Path("needle.toml").write_text(code)
        elif block.language == "python":
            exec(compile(code, PAGE.name, "exec"), scope)
        else:
            assert block.language == "sh"
            said += shell(code)
    assert "needle-finder: 2 steps" in said
    assert "0.8 MiB of memory" in said
    assert Path("page/inspect.png").stat().st_size > 10_000
    assert Path("needle-finder/evaluation/niah/heat_map.png").exists()
