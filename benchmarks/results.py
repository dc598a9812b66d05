"""Write docs/results.md and its pictures from the files of results that benchmarks/results.toml names.

    python -m benchmarks.results

No measured figure is typed by hand: every cell is read from a JSON file. After a new measurement, name its file in
benchmarks/results.toml and run the command again; a test compares the page with the files.
"""

import argparse
import json
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

from benchmarks import result_pictures as pictures

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks" / "results"
PAPER = "docs/results/paper.json"
MIB = 1 << 20
VARIANTS = ("LMM", "MAL", "MAG", "MAC")
NO_TEXT = 1000  # where a picture has the stories without other text, on its logarithmic axis
PICTURES = {
    "quality": """![S-NIAH over length: Titans, baselines and the paper](pictures/recall.svg)

![BABILong over length: Titans, baselines and the paper](pictures/babilong.svg)""",
    "speed": """![Speed of the memory layer against peers, and over length](pictures/speed.svg)

![Speed of a training step against full attention, over length](pictures/training.svg)""",
}

INTRO = """# Results

Every measured figure of the project, in tables of one point each. `python -m benchmarks.results` writes this page from
the files of results, and below each table stand the command that measures it and these files. A file has date, machine,
versions, commit and all repeats. The [log](log/README.md) has the experiments behind the results, failed ones too.

- **Quality.** A cell is the mean over the seeds of a row, in percent. Spread is the highest seed minus the lowest one.
  A sample of S-NIAH is right if the answer contains the value; BABILong has its official metric. Lengths are in tokens
  of the model: K is 1,024 and k is 1,000 tokens.
- **Memory off** is a control: the same model answers with frozen memories.
- **Speed.** All figures are of CPUs with two cores and float32. A cell is the median over the turns of one run, in
  which all candidates take turns. Spread is the highest turn minus the lowest one. Nothing has been measured on a GPU.
- An empty cell was not measured.
"""


# Reading the files of results.


@dataclass
class Run:
    """The answers of one trained model.

    Args:
        answers: percent right and number of samples, by (task, length in tokens, memory off).
        parameters: of the model; None where the file does not say.
    """

    answers: dict[tuple[str, int, bool], tuple[float, int]] = field(default_factory=dict)
    parameters: int | None = None

    def percent(self, tasks: Sequence[str], length: int, off: bool = False) -> float | None:
        """Mean over `tasks`; None if one of them was not asked at this length."""
        found = [self.answers.get((task, length, off)) for task in tasks]
        return statistics.fmean(f[0] for f in found if f) if found and all(found) else None


@cache
def load(file: str) -> Any:
    """The report of a `.json` file, or the list of the lines of a `.jsonl` file, `file` below the root."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.endswith(".jsonl") else json.loads(text)


def read_runs(source: str) -> list[Run]:
    """The runs of "FILE#ROW", one for each seed of a report and one for a .jsonl file."""
    file, _, row = source.partition("#")
    if file.endswith(".jsonl"):
        runs = [_run_of_lines(load(file), row)]
    else:
        runs = [_run_of_report(result) for result in load(file)["results"] if result["row"] == row]
    if not any(run.answers for run in runs):
        raise ValueError(f"{source}: the file has no answers of this row")
    return runs


def _run_of_report(result: dict[str, Any]) -> Run:
    run = Run(parameters=result["parameters"])
    for off, cells in ((False, result["cells"]), (True, result["cells_memory_off"])):
        for cell in cells:
            score = next(iter(cell["scores"].values()))
            run.answers[cell["task"], cell["length"], off] = (100 * score, cell["samples"])
    return run


def _run_of_lines(lines: Iterable[dict[str, Any]], row: str) -> Run:
    """The first answer to each question; lines of single samples are counted together."""
    run, single = Run(), {}
    for line in lines:
        if "task" not in line or "at_test" in line or (row and row not in (line.get("model"), line.get("run"))):
            continue
        if line.get("text", "").startswith("bAbI train"):
            continue
        key = (line["task"], line["length"], line.get("memory") == "off")
        if "right_percent" in line:
            run.answers.setdefault(key, (line["right_percent"], line["samples"]))
        else:
            single.setdefault(key, []).append(line["official"] if "official" in line else line["scores"]["contained"])
    run.answers |= {key: (100 * statistics.fmean(scores), len(scores)) for key, scores in single.items()}
    return run


def newest(pattern: str) -> list[str]:
    """Files of benchmarks/results that match, oldest first, of committed code alone."""
    files = [f"benchmarks/results/{path.name}" for path in BENCHMARKS.glob(pattern)]
    return sorted((f for f in files if not load(f)["uncommitted_code"]), key=lambda f: load(f)["date"])


# Cells and tables.


def number(value: float | None) -> str:
    """A percentage or a count with at most one decimal, or an empty cell."""
    return "" if value is None else f"{value:,.1f}".removesuffix(".0")


def times(value: float | None) -> str:
    """A ratio: two decimals below 10, one below 100."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def length_name(length: int, unit: int) -> str:
    """2048 as "2K", 16000 as "16k", a million of either as "1M"."""
    if length >= unit * unit:
        return f"{length // (unit * unit)}M"
    return f"{length // unit}{'K' if unit == 1024 else 'k'}"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table below its caption, the first column aligned left and the others right; "" without rows."""
    if not (rows := list(rows)):
        return ""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (header, *rows)]
    return "\n".join([f"**{caption}**", "", lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]])


def sources(files: Iterable[str], size: str | None = None) -> str:
    """The line below a group of tables: sizes of the models, and links to the files."""
    links = []
    for file in dict.fromkeys(file.partition("#")[0] for file in files):
        links.append(f"[{Path(file).stem}]({file.removeprefix('docs/') if file.startswith('docs/') else '../' + file})")
    return (f"Size: {size}. " if size else "") + f"{'Files' if len(links) > 1 else 'File'}: {', '.join(links)}"


def wrapped(text: str) -> str:
    """The paragraphs of `text` in lines of 120 characters."""
    wrap = TextWrapper(120, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(wrap.fill(paragraph) for paragraph in text.strip().split("\n\n"))


def section(title: str, text: str, tables: Iterable[str], command: str, foot: str) -> str:
    """A heading, its text, the tables that have rows, the command that measures them, and the files."""
    parts = [f"### {title}", wrapped(text), *tables, f"```sh\n{command.strip()}\n```", wrapped(foot)]
    return "\n\n".join(part for part in parts if part)


def millions(parameters: Iterable[int | None]) -> str | None:
    """The sizes of some models, such as "0.96 to 1.01 million parameters"."""
    found = sorted(p for p in parameters if p)
    ends = dict.fromkeys(f"{p / 1e6:.2f}" for p in (found[0], found[-1])) if found else ()
    return " to ".join(ends) + " million parameters" if ends else None


# Quality.


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

    def points(self, name: str, lengths: Iterable[int]) -> pictures.Points:
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


# Speed.


@dataclass
class Speeds:
    """The table of one benchmark: the settings of its files by the value of `axis`, and the candidates' figures."""

    about: dict[str, Any]
    settings: dict[int, dict[str, Any]]

    @classmethod
    def read(cls, about: dict[str, Any]) -> "Speeds":
        found = {}
        for file in about["files"]:
            for result in load(f"benchmarks/results/{file}")["results"]:
                setting = result["setting"]
                chosen = all(setting[name] == value for name, value in about.get("where", {}).items())
                if chosen and setting[about["axis"]] >= about.get("from", 0):
                    found[setting[about["axis"]]] = result["candidates"]
        return cls(about, dict(sorted(found.items())))

    def points(self, column: str) -> pictures.Points:
        """The line of a picture for a column: tokens a second, or a ratio."""
        key, points = self.about["columns"][column], []
        for n, candidates in self.settings.items():
            if self.about["kind"] == "ratio":
                turns = ratios(candidates, key)
            else:
                step = candidates.get(key, {}).get("step")
                turns = [step["tokens_per_second"]] if step else []
            if turns:
                points.append((n, statistics.median(turns), min(turns), max(turns)))
        return points

    def value(self, candidates: dict[str, Any], key: str) -> str:
        kind = self.about["kind"]
        if kind == "ratio":
            found = ratios(candidates, key)
            return times(statistics.median(found)) if found else ""
        candidate = candidates.get(key, {})
        if kind == "speed":
            return number(round(candidate["step"]["tokens_per_second"])) if "step" in candidate else ""
        memory = candidate.get("memory")
        if not memory:
            return ""
        if kind == "held":
            return number(round(memory["held_bytes_per_token"]))
        return number(round(memory["forward_backward_peak"]["bytes"] / MIB))

    def tables(self) -> list[str]:
        about, columns = self.about, self.about["columns"]
        header = [about["axis"], *columns]
        rows = [[f"{n:,}", *(self.value(found, key) for key in columns.values())] for n, found in self.settings.items()]
        tables = [table(about["caption"], header, rows)]
        if about["kind"] == "ratio":
            apart = []
            for n, candidates in self.settings.items():
                found = [ratios(candidates, key) for key in columns.values()]
                apart.append([f"{n:,}", *(times(max(f) - min(f)) if f else "" for f in found)])
            tables.append(table("Spread of that ratio over the turns", header, apart))
        return tables


def ratios(candidates: dict[str, Any], key: str) -> list[float]:
    """Speed of one candidate over another's in each turn, for "ours / peer"; empty if one of them is missing."""
    ours, peer = (candidates.get(name, {}).get("step", {}).get("repeats", []) for name in key.split(" / "))
    return [theirs / mine for mine, theirs in zip(ours, peer, strict=True)] if ours and peer else []


def peers(about: dict[str, Any]) -> str:
    rows, apart, counts, files = [], [], [], []
    for chunk, pattern in about["rows"].items():
        runs = newest(pattern)
        files.append(runs[-1])
        medians = []
        for run in runs:
            result = load(run)["results"][0]
            peer = next(name for name in result["candidates"] if name.startswith("titans-"))
            medians.append(statistics.median(ratios(result["candidates"], f"titanslab / {peer}")))
        found, setting = result["candidates"], result["setting"]
        layer, alone = (ratios(found, f"{name} / {peer}") for name in ("titanslab", "titanslab-op"))
        bytes_of = {name: found[name]["memory"]["forward_backward_peak"]["bytes"] for name in ("titanslab", peer)}
        share = bytes_of["titanslab"] / bytes_of[peer]
        medians_of = [times(statistics.median(turns)) for turns in (layer, alone)]
        rows.append([chunk, f"{setting['tokens']:,}", peer, *medians_of, f"{share:.2f}"])
        apart.append([chunk, *(times(max(turns) - min(turns)) for turns in (layer, alone))])
        counts.append([chunk, str(len(runs)), times(min(medians)), times(max(medians))])
    versions = load(files[0])["versions"]
    text = (
        about["text"].strip()
        + " Versions of the peers: "
        + ", ".join(f"{name} {versions[name]}" for name in ("titans-pytorch", "titans-unofficial"))
    )
    tables = [
        table(
            "The newest run: speed as a multiple of the peer's, and peak memory as a share of the peer's",
            ["chunk", "tokens", "peer", "layer", "operation alone", "memory of the layer"],
            rows,
        ),
        table("Spread of these ratios over the turns", ["chunk", "layer", "operation alone"], apart),
        table(
            "All runs of committed code, older code too: median ratio of the layer",
            ["chunk", "runs", "lowest", "highest"],
            counts,
        ),
    ]
    return section("Memory layer against other implementations", text + ".", tables, about["command"], sources(files))


def peer_bars(about: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """A label, and the median, lowest and highest ratio to the peer, of the newest run of each row."""
    bars = []
    for chunk, pattern in about["rows"].items():
        found = load(newest(pattern)[-1])["results"][0]["candidates"]
        peer = next(name for name in found if name.startswith("titans-"))
        turns = ratios(found, f"titanslab / {peer}")
        bars.append((f"chunk {chunk}, {peer}", statistics.median(turns), min(turns), max(turns)))
    return bars


def speed(about: dict[str, Any]) -> str:
    tables, files = [], []
    for spec in about["tables"]:
        tables += Speeds.read(spec).tables()
        files += [f"benchmarks/results/{file}" for file in spec["files"]]
    text = about["text"].strip()
    if "paper" in about:
        paper = load(PAPER)[about["paper"]]
        attention = paper["rows"]["Transformer++"]
        lengths = list(attention)
        ours = {name: figures for name, figures in paper["rows"].items() if figures is not attention}
        rows = [[f"{int(n):,}", *(times(f[n] / attention[n]) for f in ours.values())] for n in lengths]
        tables.append(table("The paper: speed as a multiple of its Transformer++", ["tokens", *ours], rows))
        text += f"\n\nThe table of the paper: {paper['source']}; {paper['setting']}."
        files.append(PAPER)
    size = millions(
        candidate.get("parameters")
        for spec in about["tables"]
        for candidates in Speeds.read(spec).settings.values()
        for candidate in candidates.values()
    )
    return section(about["title"], text, tables, about["command"], sources(files, size))


def decode(about: dict[str, Any]) -> str:
    results = load(file := f"benchmarks/results/{about['file']}")["results"]
    first, *later = results[0]["positions"]
    header = ["model", *(length_name(int(n), 1024) for n in later)]
    tables = []
    for name, caption in (("decode", "One token at a time"), ("prefill", "Reading a piece of the prompt")):
        found = {r["name"].upper(): [r["ratios"][f"{name} {n} / {first}"] for n in later] for r in results}
        medians = [[model, *(times(r["median"]) for r in rs)] for model, rs in found.items()]
        apart = [[model, *(times(r["range"][1] - r["range"][0]) for r in rs)] for model, rs in found.items()]
        tables.append(
            table(
                f"{caption}: time as a multiple of that after {length_name(int(first), 1024)} tokens", header, medians
            )
        )
        tables.append(table("Spread of that ratio over the turns", header, apart))
    sizes = [[r["name"].upper(), *(number(r["positions"][n]["cache_bytes"] / MIB) for n in later)] for r in results]
    tables.append(table("Size of the cache of one row in MiB", header, sizes))
    size = millions(r["parameters"] for r in results)
    return section("Decoding after a long text", about["text"], tables, about["command"], sources([file], size))


def streaming(about: dict[str, Any]) -> str:
    report = load(file := f"benchmarks/results/{about['file']}")
    verdict, last = report["verdict"], report["results"][-1]
    start = next(r for r in report["results"] if r["tokens"] == verdict["memory_from"])
    speeds = verdict["tokens_per_second"]
    rows = [
        ["tokens read", number(last["tokens"])],
        [f"resident memory after {start['tokens']:,} tokens, MiB", number(start["resident"] / MIB)],
        ["resident memory at the end, MiB", number(last["resident"] / MIB)],
        ["resident memory, end over start", f"{verdict['memory']:.3f}"],
        ["size of the state, MiB", number(last["cache"] / MIB)],
        ["tokens a second, first tenth", number(round(speeds["first"]))],
        ["tokens a second, last tenth", number(round(speeds["last"]))],
        ["tokens a second, last tenth over first", times(speeds["ratio"])],
    ]
    tables = [table("One stream", ["quantity", "value"], rows)]
    size = millions([report["settings"]["parameters"]])
    return section("A stream of ten million tokens", about["text"], tables, about["command"], sources([file], size))


def by_hand(about: dict[str, Any]) -> str:
    rows = [[r["figure"], r["value"], f"[entry](log/{r['log'][:7]}.md#{r['log']})"] for r in about["rows"]]
    listed = table("Figures without a file of results", ["figure", "value", "log"], rows)
    return "\n\n".join(["## Measured by hand", wrapped(about["text"]), listed])


# Pictures.


def draw(about: dict[str, Any], groups: Iterable[Group], folder: Path) -> None:
    for group in groups:
        if (picture := group.about.get("picture")) is not None:
            labels = {n or NO_TEXT: length_name(n, group.about["unit"]) for n in picture["lengths"]}
            lines = {name: points for name in picture["rows"] if (points := group.points(name, picture["lengths"]))}
            pictures.recall(lines, labels, picture["trained"], picture["title"], folder / picture["file"])
    specs = {
        spec["name"]: Speeds.read(spec) for about_ in about["speed"] for spec in about_["tables"] if "name" in spec
    }
    names = {"titans-lab": "layer", "titans-pytorch": "titans-pytorch", "full attention": "full attention"}
    lines = {name: specs["length"].points(column) for name, column in names.items()}
    pictures.speed(peer_bars(about["peers"]), lines, folder / "speed.svg")
    run, other = ({m: specs[name].points(m) for m in VARIANTS} for name in ("training", "training, slower CPU"))
    pictures.training(run, other, folder / "training.svg")


# The page.


def page(about: dict[str, Any], groups: Iterable[Group]) -> str:
    quality = [PICTURES["quality"], quickstart(about["quickstart"]), *(group.section() for group in groups)]
    speeds = [
        peers(about["peers"]),
        *map(speed, about["speed"]),
        decode(about["decode"]),
        streaming(about["streaming"]),
    ]
    parts = [INTRO.strip(), "## Quality", *quality, "## Speed", *speeds, by_hand(about["by_hand"])]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of results.md and pictures/")
    docs = parser.parse_args(arguments).docs
    about = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    (docs / "pictures").mkdir(parents=True, exist_ok=True)
    groups = [Group.read(group) for group in about["accuracy"]]
    (docs / "results.md").write_text(page(about, groups), encoding="utf-8")
    draw(about, groups, docs / "pictures")


if __name__ == "__main__":
    main()
