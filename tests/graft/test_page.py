"""The Python code of docs/graft.md runs in the order of the page."""

from pathlib import Path

from pages import blocks

PAGE = Path(__file__).parents[2] / "docs" / "graft.md"


def test_the_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(PAGE):
        if block.language == "python":  # the others train for longer than a test may
            exec(compile(block.code, str(PAGE), "exec"), names)
    assert names["cache"].columns == 1000
    assert names["cache"].layers[0].keys.shape[2] == 131
    assert names["answer"].shape == (1, 13)
