"""The tutorial followed block by block, with a local download, a shorter training and a smaller measurement."""

import subprocess
import sys
from pathlib import Path

import pytest

from pages import blocks

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
SENTENCES = "The light of the house was seen from the sea. Nobody knew who had put it there. It was a cold night.\n"
TITANS = f"#!/bin/sh\nexec {sys.executable} -c 'from titanslab.cli import main; main()' \"$@\"\n"
CURL = '#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done\ncp "$TEXT" "$out"\n'
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
    """A folder with `titans` and a `curl` that copies a text; runs a block there."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("titans", TITANS), ("curl", CURL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    text = tmp_path / "text.txt"
    text.write_text(SENTENCES * 300)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("TEXT", str(text))
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(code: str) -> str:
        done = subprocess.run(["bash", "-ec", code], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


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
