"""Loss by position in long texts, in a table and a picture."""

from typing import Any

from benchmarks.page.files import load
from benchmarks.page.pictures import Points
from benchmarks.page.tables import length_name, section, sources, table


def measured(about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The measurement of each model of `about["models"]`, in windows of `about["context"]` tokens.

    Its positions are those that end at `about["from"]` tokens or later.
    """
    found = {
        row["model"]: row for row in load(about["file"])["perplexity"] if row["context_length"] == about["context"]
    }
    late = {name: [b for b in found[name]["positions"] if b["last"] >= about["from"]] for name in about["models"]}
    return {name: found[name] | {"positions": buckets} for name, buckets in late.items()}


def positions(about: dict[str, Any]) -> str:
    """The section of models that read long texts."""
    rows, ends = [], []
    for name, row in measured(about).items():
        ends = [bucket["last"] for bucket in row["positions"]]
        rows.append([name, f"{row['perplexity']:.1f}", *(f"{bucket['loss']:.3f}" for bucket in row["positions"])])
    names = [f"to {length_name(end, 1024)}" for end in ends]
    caption = f"Perplexity of windows of {length_name(about['context'], 1024)}, and loss in nats by tokens of context"
    found = [f"![{about['title']}](pictures/{about['picture']})", table(caption, ["model", "perplexity", *names], rows)]
    return section(about["title"], about["text"], found, about["command"], sources([about["file"]]))


def lines(about: dict[str, Any]) -> dict[str, Points]:
    """The line of each model in the picture."""
    return {
        name: [(b["last"], b["loss"], b["loss"], b["loss"]) for b in row["positions"]]
        for name, row in measured(about).items()
        if name in about["drawn"]
    }
