"""Runs a study from the command line: several jobs at once, resumed if interrupted, then the table in its folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titanslab.experiments.plan import Choice, listing, make_jobs, open_work, write_recipes
from titanslab.experiments.report import Report, command, say
from titanslab.experiments.study import CPU, FILES, Study

RESULTS = "results.json"  # in the work folder, beside the .md and .png of the same name
QUESTIONS = ("names", "lengths", "samples", "far", "far_samples")  # options that change the section [ask]
VERBS = ("table_only", "list_rows", "recipes")  # options that choose the work; the results do not depend on them


def choose(study: Study, values: Mapping[str, Any]) -> Choice:
    """The choices of `titans reproduce`.

    Args:
        study: gives the default of the work folder, see `default_name`.
        values: the options of the command line by the names of its parameters; None = not given.

    Raises:
        ValueError: `--output` names a folder.
    """
    output = values["output"]
    if output is not None and output.is_dir():
        raise ValueError(f"--output {str(output)!r} is a folder; name a JSON file, such as {output / RESULTS}")
    asked = [f"ask.{name}={values[name]}" for name in QUESTIONS if values[name] is not None]
    if values.get("language_data") is not None:
        folder = Path(values["language_data"])
        if not any(part.measures["language"].tasks for part in study.sets.values()):
            raise ValueError(f"--language-data is not used by the study {study.name}; leave it out")
        if not folder.is_dir():
            raise ValueError(f"--language-data {str(folder)!r} is not a folder; name the folder of the tasks' files")
        asked.append(f"language.data={folder.absolute()}")
    return Choice(
        work=values["work"] or Path("runs") / default_name(study),
        files={name: values[name] for name in FILES if values[name] is not None},
        until=values["stage"],
        changes=[*asked, *(values["changes"] or ())],
        data=values.get("data") or [],
        validation=values.get("validation") or [],
        **{name: values[name] for name in ("sets", "rows", "seeds", "far_rows", "tokenizer", "device")},
    )


def default_name(study: Study) -> str:
    """Name of the work folder of a study at its scale and budget, such as `ablation` or `ablation-gpu-budget-0.01`."""
    scale = "" if study.scale == CPU else f"-{study.scale}"
    return f"{study.name}{scale}" + ("" if study.budget == 1 else f"-budget-{study.budget:g}")


def print_rows(study: Study, sets: str | None) -> None:
    """Print the rows of the sets that `sets` names (None = all) with their sizes and stages, and the texts needed."""
    from rich.console import Console
    from rich.table import Table

    caption = "stages in parentheses are optional: --stage NAME"
    table = Table("set", "row", "parameters", "stages", "", title=study.title, caption=caption)
    last = ""
    for name, row, parameters, stages, about in listing(study, sets):
        if last and name != last:
            table.add_section()
        table.add_row("" if name == last else name, row, f"{parameters:,}" if parameters else "", stages, about)
        last = name
    console = Console(highlight=False)
    console.print(table)
    for name, use in study.files.items():
        console.print(f"--{name.replace('_', '-')}: {'needed' if use.needed else 'optional'}")


def recipe_commands(study: Study, choice: Choice) -> list[str]:
    """Write the tokenizer and the recipe of every stage; returns the commands that train them, in their order."""
    make_jobs(study, choice, need_test_files=False)
    jobs = make_jobs(open_work(study, choice), choice, need_test_files=False, fitted=True)
    pairs = write_recipes(jobs)
    return [shlex.join(["titans", "train", str(recipe), "--output", str(run)]) for recipe, run in pairs]


def run_study(study: Study, choice: Choice, at_once: int = 1, threads: int = 1) -> list[str]:
    """Run all chosen rows and seeds, at most `at_once` at a time, then time the rows one after the other.

    Returns the names of the failed jobs.
    """
    from titanslab.experiments.jobs import run_jobs, time_jobs, unit_of
    from titanslab.progress import bar

    make_jobs(study, choice)  # raises for errors of the command line before the work folder is made
    jobs = make_jobs(open_work(study, choice), choice, fitted=True)
    trained = [job for job in jobs if not job.only_speed and not job.finished]
    failed: list[str] = []
    if trained:
        with bar(study.name, f"thousand {unit_of(trained)}") as progress:
            failed = run_jobs(trained, at_once, threads, progress)
    timed = [job for job in jobs if job.seed == jobs[0].seed and job.times and job.name not in failed]
    if timed:
        with bar(f"{study.name}, speed", "rows") as progress:
            failed += time_jobs(timed, at_once * threads, progress)
    return failed


def write_results(study: Study, choice: Choice, settings: Mapping[str, Any], output: Path | None = None) -> Path:
    """Write JSON, table and picture of all results in the work folder.

    Args:
        study: the study, with the order of rows, the paper's figures and the task.
        choice: the work folder, and changes of the questions.
        settings: options of the command line by name. The JSON records them, those of `VERBS` aside.
        output: path of the JSON; None = `results.json` in the work folder.

    Returns:
        The path of the markdown table.
    """
    import torch

    from titanslab.experiments import text_tables
    from titanslab.experiments.report import picture
    from titanslab.experiments.table import accuracies, accuracy_panels, collect, collect_speed, costs
    from titanslab.files import write_whole

    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items() if k not in VERBS}
    ask = study.asked(choice.changes)
    results, missing = collect(study, choice.work)
    speeds = collect_speed(study, choice.work)
    if not results and not speeds:
        raise ValueError(
            f"--work {str(choice.work)!r} holds no finished run of {study.name}; leave --table-only out to make one"
        )
    torch.set_num_threads(max(1, min(settings.get("jobs", 1) * settings.get("threads", 1), os.cpu_count() or 1)))
    device = torch.device("cuda" if settings.get("device", "cpu") != "cpu" and torch.cuda.is_available() else "cpu")
    report = Report(study.name, ask.seed, device, settings, output or choice.work / RESULTS)
    for name, reason in missing:
        report.missing(name, reason)
    report.content["results"] = results
    if speeds:
        report.content["speed"] = speeds
    path = report.finish()
    table = path.with_suffix(".md")
    parts = text_tables.tables(study, results, speeds)
    panels = text_tables.panels(study, results, speeds)
    questions = {name: study.asked(choice.changes, name) for name in study.sets}
    for first, asked in questions.items():
        same = [name for name, other in questions.items() if other == asked]  # these sets share a table
        group = [result for result in results if result["set"] in same]
        if asked.task and group and same[0] == first:
            parts += accuracies(group, asked, study.paper)
            panels += accuracy_panels(group, asked)
    parts += [costs(results)] if results else []
    write_whole(table, f"# {study.title}\n\n`{command()}`\n\n" + "\n\n".join(parts) + "\n")
    say(f"wrote {table}")
    if panels:
        picture(path, panels, f"{study.title}, commit {str(report.content['commit'])[:9]}")
    return table
