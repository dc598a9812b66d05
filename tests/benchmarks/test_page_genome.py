"""The section of genomes on the page of results."""

import json

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
    (tmp_path / "g.json").write_text(json.dumps({"settings": {"window": 8192}, "results": [*markov, *runs]}))
    about = {"title": "A title", "text": "Words.", "command": "python x", "file": str(tmp_path / "g.json")}
    text = genome(about | {"tests": {"a.fa": "One", "b.fa": "Two"}, "from": 2047, "more": []})
    assert "| genome | 0 | 2 |" in text
    assert "| One, counts of training | 2.000 | 1.800 |" in text
    assert "| Two, counts of training and all bases before | 1.950 | 1.750 |" in text
    assert "in windows of 8K and in one stream" in text
    assert "| memory | 1.750 | 1.700 | 1.720 | 1.650 | 1.600 | 1.620 |" in text
    assert "| all | 1.500 | | | 1.400 | | |" in text
    assert "**One, one stream: bits per base by bases read before**" in text
    assert "| model | to 2K |" in text
    assert "| memory | 1.800 |" in text
