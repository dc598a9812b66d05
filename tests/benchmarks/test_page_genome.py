"""The section of genomes on the page of results."""

import json

import pytest
from benchmarks.page.genome import genome


def test_the_tables_have_each_model_and_test(tmp_path):
    def run(test, name, **ways):
        return {"test": test, "run": name, **{way: {"bits": bits, "positions": places} for way, bits in ways.items()}}

    places = [{"first": 512, "last": 1023, "bits": 1.9}, {"first": 1024, "last": 2047, "bits": 1.8}]
    markov = [
        {"test": test, "markov": order, "adaptive": adaptive, "bits": 2 - order / 10 - adaptive / 20}
        for test in ("a.fa", "b.fa")
        for order in (0, 2)
        for adaptive in (False, True)
    ]
    runs = [
        run("a.fa", "memory", windows=1.75, stream=1.7, frozen=1.72),
        run("b.fa", "memory", windows=1.65, stream=1.6, frozen=1.62),
        run("a.fa", "all", windows=1.5),
        run("b.fa", "all", windows=1.4),
    ]
    files = []
    for name, window, results in (("g", 8192, [*markov, *runs[:2]]), ("h", 8192, runs[2:]), ("i", 512, [])):
        files.append(str(tmp_path / f"{name}.json"))
        (tmp_path / f"{name}.json").write_text(json.dumps({"settings": {"window": window}, "results": results}))
    about = {"title": "A title", "text": "Words.", "command": "python x", "files": files[:2]}
    about |= {"tests": {"a.fa": "One", "b.fa": "Two"}, "from": 2047}
    with pytest.raises(ValueError, match="windows of 512, 8192 bases"):
        genome(about | {"files": files})
    text = genome(about)
    assert "| genome | 0 | 2 |" in text
    assert "| One, counts of training | 2.000 | 1.800 |" in text
    assert "| Two, counts of training and all bases before | 1.950 | 1.750 |" in text
    assert "in windows of 8K and in one stream" in text
    assert "| memory | 1.750 | 1.700 | 1.720 | 1.650 | 1.600 | 1.620 |" in text
    assert "| all | 1.500 | | | 1.400 | | |" in text
    assert "**One, one stream: bits per base by bases read before**" in text
    assert "| model | to 2K |" in text
    assert "| memory | 1.800 |" in text
