"""The tables of speed and memory."""

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.page.files import PAPER, load, newest
from benchmarks.page.pictures import Points
from benchmarks.page.tables import length_name, millions, number, section, sources, table, times

MIB = 1 << 20


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

    def points(self, column: str) -> Points:
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

    def cell(self, candidates: dict[str, Any], key: str) -> str:
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
        rows = [[f"{n:,}", *(self.cell(found, key) for key in columns.values())] for n, found in self.settings.items()]
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


@dataclass
class PeerRuns:
    """The runs of one row against a peer, oldest first; `ours` is the layer or the operation alone."""

    chunk: str
    files: list[str]

    @property
    def newest(self) -> dict[str, Any]:
        return load(self.files[-1])["results"][0]

    @property
    def peer(self) -> str:
        return next(name for name in self.newest["candidates"] if name.startswith("titans-"))

    def turns(self, ours: str = "titanslab", file: str | None = None) -> list[float]:
        """The ratio to the peer in each turn of the newest run, or of `file`."""
        return ratios(load(file or self.files[-1])["results"][0]["candidates"], f"{ours} / {self.peer}")

    @property
    def memory(self) -> float:
        """Peak memory of the layer over the peer's."""
        found = self.newest["candidates"]
        ours, theirs = (found[name]["memory"]["forward_backward_peak"]["bytes"] for name in ("titanslab", self.peer))
        return ours / theirs

    @property
    def bar(self) -> tuple[str, float, float, float]:
        """Label, median, lowest and highest ratio of the newest run, for a picture."""
        turns = self.turns()
        return f"chunk {self.chunk}, {self.peer}", statistics.median(turns), min(turns), max(turns)


def peer_runs(about: dict[str, Any]) -> list[PeerRuns]:
    return [PeerRuns(chunk, newest(pattern)) for chunk, pattern in about["rows"].items()]


def peers(about: dict[str, Any]) -> str:
    """The section of the rows against other implementations: the newest run of each, and the number of runs."""
    rows, apart, counts = [], [], []
    for runs in (all_runs := peer_runs(about)):
        layer, alone = runs.turns(), runs.turns("titanslab-op")
        tokens = f"{runs.newest['setting']['tokens']:,}"
        medians = [times(statistics.median(turns)) for turns in (layer, alone)]
        rows.append([runs.chunk, tokens, runs.peer, *medians, f"{runs.memory:.2f}"])
        apart.append([runs.chunk, *(times(max(turns) - min(turns)) for turns in (layer, alone))])
        every = [statistics.median(runs.turns(file=file)) for file in runs.files]
        counts.append([runs.chunk, str(len(every)), times(min(every)), times(max(every))])
    newest_files = [runs.files[-1] for runs in all_runs]
    versions = load(newest_files[0])["versions"]
    names = ", ".join(f"{name} {versions[name]}" for name in ("titans-pytorch", "titans-unofficial"))
    caption = "The newest run: speed as a multiple of the peer's, and peak memory as a share of the peer's"
    header = ["chunk", "tokens", "peer", "layer", "operation alone", "memory of the layer"]
    tables = [
        table(caption, header, rows),
        table("Spread of these ratios over the turns", ["chunk", "layer", "operation alone"], apart),
        table(
            "All runs, with older code too: median ratio of the layer", ["chunk", "runs", "lowest", "highest"], counts
        ),
    ]
    text = f"{about['text'].strip()} Versions of the peers: {names}."
    title = "Memory layer against other implementations"
    return section(title, text, tables, about["command"], sources(newest_files))


def speed(about: dict[str, Any]) -> str:
    """The section of one benchmark, with the paper's table where it has one."""
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
    """The section of the time of a token, and of a piece of a prompt, after long texts."""
    results = load(file := f"benchmarks/results/{about['file']}")["results"]
    first, *later = results[0]["positions"]
    header = ["model", *(length_name(int(n), 1024) for n in later)]
    tables = []
    for name, caption in (("decode", "One token at a time"), ("prefill", "Reading a piece of the prompt")):
        found = {r["name"].upper(): [r["ratios"][f"{name} {n} / {first}"] for n in later] for r in results}
        medians = [[model, *(times(r["median"]) for r in rs)] for model, rs in found.items()]
        apart = [[model, *(times(r["range"][1] - r["range"][0]) for r in rs)] for model, rs in found.items()]
        caption += f": time as a multiple of that after {length_name(int(first), 1024)} tokens"
        tables.append(table(caption, header, medians))
        tables.append(table("Spread of that ratio over the turns", header, apart))
    sizes = [[r["name"].upper(), *(number(r["positions"][n]["cache_bytes"] / MIB) for n in later)] for r in results]
    tables.append(table("Size of the cache of one row in MiB", header, sizes))
    size = millions(r["parameters"] for r in results)
    return section("Decoding after a long text", about["text"], tables, about["command"], sources([file], size))


def streaming(about: dict[str, Any]) -> str:
    """The section of memory and speed over one long stream."""
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
