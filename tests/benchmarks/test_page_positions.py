"""The section of loss by position on the page of results, and its picture."""

import json

import pytest
from benchmarks.page import pictures
from benchmarks.page.positions import lines, positions


@pytest.fixture
def about(tmp_path):
    def row(model, context, *losses):
        ends = (512, 1024, 2048)
        buckets = [{"first": 1, "last": end, "loss": loss} for end, loss in zip(ends, losses, strict=False)]
        return {"model": model, "context_length": context, "perplexity": 12.34, "positions": buckets}

    rows = [row("LMM", 2048, 5.0, 4.5, 4.25), row("LMM", 1024, 9.0, 9.0), row("LMM, carried", 2048, 5.5, 4.75, 4.0)]
    (tmp_path / "a.json").write_text(json.dumps({"perplexity": rows}))
    words = {"title": "A title", "text": "Words.", "command": "titans x", "file": str(tmp_path / "a.json")}
    models = {"models": ["LMM", "LMM, carried"], "drawn": ["LMM", "LMM, carried"]}
    return words | models | {"context": 2048, "from": 1024, "picture": "a.svg"}


def test_a_table_has_the_windows_asked_for(about):
    text = positions(about)
    assert "| model | perplexity | to 1K | to 2K |" in text
    assert "| LMM | 12.3 | 4.500 | 4.250 |" in text
    assert "| LMM, carried | 12.3 | 4.750 | 4.000 |" in text
    assert "9.000" not in text
    with pytest.raises(KeyError, match="MAC"):
        positions(about | {"models": ["MAC"]})


def test_the_picture_has_the_lines_asked_for(about, tmp_path):
    drawn = lines(about | {"drawn": ["LMM, carried"]})
    assert drawn == {"LMM, carried": [(1024, 4.75, 4.75, 4.75), (2048, 4.0, 4.0, 4.0)]}
    pictures.positions(lines(about), 1024, "A title", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count("stroke-dasharray") > 1
