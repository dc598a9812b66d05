"""The tables of quality: answers by length, and the quickstart."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.page.files import PAPER, Run, load, read_runs
from benchmarks.page.pictures import Points
from benchmarks.page.tables import length_name, millions, number, section, sources, table

NO_TEXT = 1000  # where a picture has the stories without other text, on its logarithmic axis


@dataclass
class Group:
    """One group of tables of answers: a section of benchmarks/results.toml and the runs of its rows."""

    about: dict[str, Any]
    rows: dict[str, list[Run]]
    lengths: list[int]
    tasks: list[str]

    @classmethod
    def read(cls, about: dict[str, Any]) -> "Group":
        rows = {name: [run for source in files for run in read_runs(source)] for name, files in about["rows"].items()}
        keys = [key for runs in rows.values() for run in runs for key in run.answers]
        tables = list(about["tables"].values()) or [sorted({task for task, _, _ in keys})]
        group = cls(about, rows, [], sorted({task for tasks in tables for task in tasks}))
        asked = about.get("lengths") or sorted({length for _, length, _ in keys})
        group.lengths = [n for n in asked if any(group.cells(runs, t, n) for runs in rows.values() for t in tables)]
        return group

    def cells(self, runs: list[Run], tasks: Sequence[str], length: int, off: bool = False) -> list[float]:
        """Percent right of each run that was asked."""
        return [value for run in runs if (value := run.percent(tasks, length, off)) is not None]

    def header(self, *first: str) -> list[str]:
        return [*first, *(length_name(n, self.about["unit"]) for n in self.lengths)]

    def means(self, runs: list[Run], tasks: Sequence[str], off: bool = False) -> list[float | None]:
        cells = [self.cells(runs, tasks, n, off) for n in self.lengths]
        return [statistics.fmean(c) if c else None for c in cells]

    def answers(self, name: str, tasks: list[str]) -> str:
        """The table of one task or average: our rows, then the paper's."""
        rows = []
        for row, runs in self.rows.items():
            means = self.means(runs, tasks)
            if any(m is not None for m in means):
                rows.append([row, str(len(runs)), *map(number, means)])
        for row, figures in self.paper().items():
            figures = figures.get("average") or figures[tasks[0]]
            rows.append([f"paper: {row}", "", *(number(figures.get(str(n))) for n in self.lengths)])
        return table(f"{name}, % right", self.header("model", "seeds"), rows)

    def spread(self) -> str:
        """The highest minus the lowest seed of each row that has a difference."""
        rows = []
        for name, tasks in self.about["tables"].items():
            for row, runs in self.rows.items():
                cells = [self.cells(runs, tasks, n) for n in self.lengths]
                apart = [max(c) - min(c) if len(c) > 1 else None for c in cells]
                if any(apart):
                    rows.append([row, name, *map(number, apart)])
        return table("Spread over the seeds, in points, where it is not 0", self.header("model", "table"), rows)

    def seeds(self) -> str:
        """The table of rows with cells of fewer seeds than the row has."""
        rows = []
        for row, runs in self.rows.items():
            asked = {n: max(len(self.cells(runs, [task], n)) for task in self.tasks) for n in self.lengths}
            if any(0 < count < len(runs) for count in asked.values()):
                rows.append([row, *(str(count or "") for count in asked.values())])
        return table("Seeds behind a cell, where a row has cells of fewer seeds", self.header("model"), rows)

    def questions(self, row: str) -> str:
        rows = [[task.split("_", 1)[1], *map(number, self.means(self.rows[row], [task]))] for task in self.tasks]
        return table(f"{row} by question, % right", self.header("question"), rows)

    def memory_off(self) -> str:
        """The control: percent right with frozen memories, averaged over the tasks."""
        lengths = sorted({n for runs in self.rows.values() for run in runs for _, n, off in run.answers if off})
        rows = []
        for row, runs in self.rows.items():
            cells = [self.cells(runs, self.tasks, n, True) for n in lengths]
            if any(cells):
                rows.append([row, *(number(statistics.fmean(c) if c else None) for c in cells)])
        names = [length_name(n, self.about["unit"]) for n in lengths]
        return table("Memory off, average over the tasks, % right", ["model", *names], rows)

    def samples(self) -> str:
        """Samples behind a cell, by row; by question where there is no other table."""
        caption, rows = "Samples behind a cell, of each task, all seeds together", []
        for row, runs in self.rows.items():
            for tasks in [self.tasks] if self.about["tables"] else [[task] for task in self.tasks]:
                found = []
                for n in self.lengths:
                    counts = [sum(run.answers.get((task, n, False), (0, 0))[1] for run in runs) for task in tasks]
                    found.append(min((count for count in counts if count), default=None))
                rows.append([row if self.about["tables"] else tasks[0].split("_", 1)[1], *map(number, found)])
        return table(caption, self.header("model" if self.about["tables"] else "question"), rows)

    def paper(self) -> dict[str, Any]:
        return load(PAPER)[self.about["paper"]]["rows"] if "paper" in self.about else {}

    def points(self, name: str, lengths: Iterable[int]) -> Points:
        """The line of a picture for a row of ours, or of the paper for "paper: ROW": average over all tasks."""
        points = []
        for n in lengths:
            if name.startswith("paper: "):
                found = [task.get(str(n)) for task in self.paper()[name.removeprefix("paper: ")].values()]
                cells = [statistics.fmean(found)] if None not in found else []
            else:
                cells = self.cells(self.rows[name], self.tasks, n)
            if cells:
                points.append((n or NO_TEXT, statistics.fmean(cells), min(cells), max(cells)))
        return points

    def section(self) -> str:
        about = self.about
        text, files = about["text"].strip(), [file for names in about["rows"].values() for file in names]
        if "paper" in about:
            paper = load(PAPER)[about["paper"]]
            text += f"\n\nRows of the paper: {paper['source']}; {paper['setting']}; {paper['unit']}."
            files.append(PAPER)
        tables = [self.answers(name, tasks) for name, tasks in about["tables"].items()]
        tables += [self.spread(), *map(self.questions, about.get("questions", ())), self.memory_off()]
        tables += [self.seeds(), self.samples()]
        size = about.get("size") or millions(run.parameters for runs in self.rows.values() for run in runs)
        return section(about["title"], text, tables, about["command"], sources(files, size))


def quickstart(about: dict[str, Any]) -> str:
    """The section of the quickstart, one seed a file."""
    reports = [load(file) for file in about["files"]]
    seeds = ["seed", "Titans", "window"]
    beyond = [
        [str(r["seed"]), *(number(100 * r[m]["recall_beyond_window"]) for m in ("titans", "window"))] for r in reports
    ]
    bits = [[str(r["seed"]), *(f"{r[m]['bits_per_byte']:.2f}" for m in ("titans", "window"))] for r in reports]
    distances, apart = [], []
    for distance in reports[0]["titans"]["recall"]:
        cells = {m: [100 * r[m]["recall"][distance] for r in reports] for m in ("titans", "window")}
        distances.append([f"{int(distance):,}", *(number(statistics.fmean(c)) for c in cells.values())])
        apart.append([f"{int(distance):,}", *(number(max(c) - min(c)) for c in cells.values())])
    settings = reports[0]["settings"]
    text = about["text"].strip() + (
        f" The window reaches {reports[0]['window_reach']} bytes back, and chance is {100 * reports[0]['chance']:g} %."
        f" A cell has {settings['questions']} questions a seed and distance."
    )
    tables = [
        table("Facts recalled from beyond the window, %", seeds, beyond),
        table("Validation bits per byte", seeds, bits),
        table("Facts recalled by distance in bytes, mean over the seeds, %", ["distance", *seeds[1:]], distances),
        table("Spread over the seeds, in points", ["distance", *seeds[1:]], apart),
    ]
    size = millions(r[m]["parameters"] for r in reports for m in ("titans", "window"))
    return section("Quickstart", text, tables, about["command"], sources(about["files"], size))
