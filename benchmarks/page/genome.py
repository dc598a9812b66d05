"""Bits per base of genomes: Markov models by order, and models that were trained on the same bases."""

from typing import Any

from benchmarks.page.files import load
from benchmarks.page.tables import length_name, section, sources, table

WAYS = {"windows": "windows", "stream": "one stream", "frozen": "one stream, memory frozen"}


def genome(about: dict[str, Any]) -> str:
    """The section of files of `benchmarks.genome`; `about["tests"]` has a name for each of their test files.

    Raises:
        ValueError: the files have windows of several sizes.
    """
    reports = [load(file) for file in about["files"]]
    rows, names = [row for report in reports for row in report["results"]], about["tests"]
    windows = {report["settings"]["window"] for report in reports}
    if len(windows) > 1:
        raise ValueError(f"{', '.join(about['files'])}: windows of {', '.join(map(str, sorted(windows)))} bases")
    window = length_name(windows.pop(), 1024)

    def of(test: str, key: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["test"] == test and key in row]

    orders = sorted({row["markov"] for row in rows if "markov" in row})
    markov = []
    for test, name in names.items():
        for adaptive, counted in ((False, "training"), (True, "training and all bases before")):
            bits = {row["markov"]: f"{row['bits']:.3f}" for row in of(test, "markov") if row["adaptive"] is adaptive}
            markov.append([f"{name}, counts of {counted}", *(bits.get(order, "") for order in orders)])
    header = ["model", *(f"{name}, {way}" for name in names.values() for way in WAYS.values())]
    runs = list(dict.fromkeys(row["run"] for row in rows if "run" in row))
    found = {(row["test"], row["run"]): row for row in rows if "run" in row}
    trained = [
        [run, *(_bits(found[test, run], way) for test in names for way in WAYS)]
        for run in runs  # in the order of the command
    ]
    first = next(iter(names))
    streams = {run: found[first, run]["stream"]["positions"] for run in runs if "stream" in found[first, run]}
    ends = [bucket["last"] for bucket in next(iter(streams.values())) if bucket["last"] >= about["from"]]
    late = [
        [run, *(f"{b['bits']:.3f}" for b in positions if b["last"] >= about["from"])]
        for run, positions in streams.items()
    ]
    tables = [
        table("Markov models, bits per base by order", ["genome", *map(str, orders)], markov),
        table(f"Trained models, bits per base, in windows of {window} and in one stream", header, trained),
        table(
            f"{names[first]}, one stream: bits per base by bases read before",
            ["model", *(f"to {length_name(end + 1, 1024)}" for end in ends)],
            late,
        ),
    ]
    return section(about["title"], about["text"], tables, about["command"], sources(about["files"]))


def _bits(row: dict[str, Any], way: str) -> str:
    return f"{row[way]['bits']:.3f}" if way in row else ""
