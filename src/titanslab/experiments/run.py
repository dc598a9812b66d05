"""Runs a study: several jobs at once, resumed if interrupted, then the table in the work folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from titanslab.experiments.plan import Choice, make_jobs, open_work
from titanslab.experiments.report import Report, command, say
from titanslab.experiments.study import Study

RESULTS = "results.json"  # in the work folder, beside the .md and .png of the same name


def run_study(study: Study, choice: Choice, at_once: int = 1, threads: int = 1) -> list[str]:
    """Run all chosen rows and seeds, at most `at_once` at a time; return the names of the failed jobs."""
    from titanslab.experiments.jobs import run_jobs
    from titanslab.progress import bar

    make_jobs(study, choice)  # raises for errors of the command line before the work folder is made
    jobs = make_jobs(open_work(study, choice), choice)
    with bar(study.name, "thousand tokens") as progress:
        return run_jobs(jobs, at_once, threads, progress)


def write_results(study: Study, choice: Choice, settings: dict[str, Any], output: Path | None = None) -> Path:
    """Write JSON, table and picture of all results in the work folder.

    Args:
        study: the study, with the order of rows, the paper's figures and the task.
        choice: the work folder, and changes of the questions.
        settings: options of the command line, recorded in the JSON.
        output: path of the JSON; None = `results.json` in the work folder.

    Returns:
        The path of the markdown table.
    """
    import torch

    from titanslab.experiments.table import collect, draw, markdown
    from titanslab.files import write_whole

    ask = study.asked(choice.changes)
    results, missing = collect(study, choice.work)
    if not results:
        raise ValueError(
            f"--work {str(choice.work)!r} holds no finished run of {study.name}; leave --table-only out to make one"
        )
    torch.set_num_threads(max(1, min(settings.get("jobs", 1) * settings.get("threads", 1), os.cpu_count() or 1)))
    device = torch.device("cuda" if settings.get("device", "cpu") != "cpu" and torch.cuda.is_available() else "cpu")
    report = Report(study.name, ask.seed, device, settings, output or choice.work / RESULTS)
    for name, reason in missing:
        report.missing(name, reason)
    report.content["results"] = results
    path = report.finish()
    table = path.with_suffix(".md")
    write_whole(table, f"# {study.title}\n\n`{command()}`\n\n{markdown(results, ask, study.paper)}")
    say(f"wrote {table}")
    draw(path, results, ask, f"{study.title}, commit {str(report.content['commit'])[:9]}")
    return table
