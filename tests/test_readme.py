"""Every Python block of README, docs and model cards runs; every `titans` line names verbs and flags that exist."""

import re
from pathlib import Path

import pytest
import torch

from pages import blocks, shell_with

ROOT = Path(__file__).parents[1]
CARDS = sorted((ROOT / "checkpoints").glob("*/README.md"))
EVERY = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *CARDS)
PAGES = [page for page in EVERY if "```python" in page.read_text() and page.name != "tutorial.md"]  # see its own test


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_python_blocks_run(page: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), scope)


def test_thirty_seconds(tmp_path, monkeypatch) -> None:
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITANS_STATE", str(tmp_path / "state"))
    shell = shell_with(tmp_path / "programs", monkeypatch)
    (block,) = (b for b in blocks(ROOT / "README.md") if "titans chat" in b.code)
    said = shell(block.code, "Mary took the milk. Mary went to the garden.\nWhere is the milk?\n")
    assert "4821937" in said
    assert "garden" in said
    assert list(tmp_path.rglob("inspect.png"))


def test_commands_exist() -> None:
    import typer

    from titanslab.cli import VERBS
    from titanslab.cli.root import verb_command

    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *CARDS)
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")  # a command may take several lines
    lines = re.findall(r"^(?:\$ )?(titans .*)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        verb, *words = line.split()[1:]
        if verb == "--version":
            continue
        assert verb in VERBS, f"{line}: no such verb"
        command = verb_command(verb)
        while hasattr(command, "get_command"):
            deeper = command.get_command(typer.Context(command), words[0]) if words else None
            if deeper is None:
                break
            command = deeper
            words.pop(0)
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        unknown = [w for w in words if w.startswith("--") and w not in known]
        assert not unknown, f"{line}: {unknown}"
