"""The tables of the studies of text, series and DNA, as `titans reproduce` writes them."""

from typing import Any

from benchmarks.page.files import load
from benchmarks.page.tables import section, sources
from titanslab.experiments.study_file import load_study
from titanslab.experiments.table import costs
from titanslab.experiments.text_tables import tables


def study(about: dict[str, Any]) -> str:
    """The section of a study; `about["files"]` are its results, which may hold different rows and seeds.

    Raises:
        ValueError: two files have the same row and seed of a set, or no file has a result.
    """
    plan = load_study(about["study"])
    results: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    seen: dict[tuple[str, str, int], str] = {}
    for file in about["files"]:
        report = load(file)
        results += report["results"]
        speeds += report.get("speed", [])
        for result in report["results"]:
            key = (result["set"], result["row"], result["seed"])
            if before := seen.get(key):
                raise ValueError(f"{file} and {before} both have {result['row']} with seed {result['seed']}")
            seen[key] = file
    shown = tables(plan, results, speeds)
    if not shown:
        raise ValueError(f"{', '.join(about['files'])}: there is no result of {about['study']}")
    shown += [costs(results)] if results else []
    if "picture" in about:
        shown.insert(0, f"![{plan.title}](../{about['picture']})")
    return section(about["title"], about["text"], shown, about["command"], sources(about["files"]))
