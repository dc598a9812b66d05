"""The tables of the studies of text, series and DNA, as `titans reproduce` writes them."""

from typing import Any

from benchmarks.page.files import load
from benchmarks.page.tables import section, sources
from titanslab.experiments.study_file import load_study
from titanslab.experiments.table import costs
from titanslab.experiments.text_tables import tables


def study(about: dict[str, Any]) -> str:
    """The section of a study.

    `about["files"]` are its results, which may hold different rows and seeds. "FILE#WORDS" has other runs of rows,
    whose names in the tables end with these words. `costs = false` leaves out the table of parameters and seconds,
    which is long where a study has many sets.

    Raises:
        ValueError: two files have the same row and seed of a set, or no file has a result.
    """
    plan = load_study(about["study"])
    results: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    seen: dict[tuple[str, str, int], str] = {}
    for source in about["files"]:
        file, _, words = source.partition("#")
        report = load(file)
        speeds += report.get("speed", [])
        for result in report["results"]:
            named = {name: f"{result[name]}, {words}" for name in ("row", "model")} if words else {}
            results.append({**result, **named})
            key = (result["set"], results[-1]["row"], result["seed"])
            if before := seen.get(key):
                raise ValueError(f"{file} and {before} both have {key[1]} with seed {key[2]}")
            seen[key] = file
    shown = tables(plan, results, speeds)
    if not shown:
        raise ValueError(f"{', '.join(about['files'])}: there is no result of {about['study']}")
    shown += [costs(results)] if results and about.get("costs", True) else []
    if "picture" in about:
        shown.insert(0, f"![{plan.title}](../{about['picture']})")
    return section(about["title"], about["text"], shown, about["command"], sources(about["files"]))
