"""Write docs/results.md and its pictures from the files of results that benchmarks/page/results.toml names.

    python -m benchmarks.results

No measured figure is typed by hand: every cell is read from a JSON file. After a new measurement, name its file in
results.toml and run the command again; a test compares the page with the files.
"""

import argparse
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import pictures
from benchmarks.page.files import ROOT
from benchmarks.page.genome import genome
from benchmarks.page.positions import lines as lines_of
from benchmarks.page.positions import positions
from benchmarks.page.quality import NO_TEXT, Group, quickstart
from benchmarks.page.speed import Speeds, decode, peer_runs, peers, speed, streaming
from benchmarks.page.studies import study
from benchmarks.page.tables import length_name, table, wrapped

TABLES = Path(__file__).parent / "page" / "results.toml"
VARIANTS = ("LMM", "MAL", "MAG", "MAC")
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
STUDIES = """These tables are those of `titans reproduce`. The models of a table have one size, read the same data in
the same order, and are tuned alike ([how](studies.md)). The paper's models are larger by two orders of magnitude and
have read thousands of times as much text: its columns show the order of its rows, and its values cannot be compared
with ours."""


def page(about: dict[str, Any], groups: Iterable[Group]) -> str:
    """The text of docs/results.md."""
    quality = [PICTURES["quality"], quickstart(about["quickstart"]), *(group.section() for group in groups)]
    speeds = [
        peers(about["peers"]),
        *map(speed, about["speed"]),
        decode(about["decode"]),
        streaming(about["streaming"]),
    ]
    studies = ["## Language, series and DNA", STUDIES, *map(study, about["study"])] if "study" in about else []
    studies += [*map(positions, about["positions"]), *map(genome, about.get("genome", []))]
    parts = [INTRO.strip(), "## Quality", *quality, *studies, "## Speed", *speeds, by_hand(about["by_hand"])]
    return "\n\n".join(parts) + "\n"


def by_hand(about: dict[str, Any]) -> str:
    """The section of figures that have an entry in the log alone."""
    rows = [[r["figure"], r["value"], f"[entry](log/{r['log'][:7]}.md#{r['log']})"] for r in about["rows"]]
    listed = table("Figures without a file of results", ["figure", "value", "log"], rows)
    return "\n\n".join(["## Measured by hand", wrapped(about["text"]), listed])


def draw(about: dict[str, Any], groups: Iterable[Group], folder: Path) -> None:
    """Write the pictures of the page into `folder`."""
    for group in groups:
        if (picture := group.about.get("picture")) is not None:
            labels = {n or NO_TEXT: length_name(n, group.about["unit"]) for n in picture["lengths"]}
            lines = {name: points for name in picture["rows"] if (points := group.points(name, picture["lengths"]))}
            pictures.recall(lines, labels, picture["trained"], picture["title"], folder / picture["file"])
    for long in about["positions"]:
        pictures.positions(lines_of(long), long["trained"], long["title"], folder / long["picture"])
    tables = [spec for benchmark in about["speed"] for spec in benchmark["tables"]]
    named = {spec["name"]: Speeds.read(spec) for spec in tables if "name" in spec}
    names = {"titans-lab": "layer", "titans-pytorch": "titans-pytorch", "full attention": "full attention"}
    lines = {name: named["length"].points(column) for name, column in names.items()}
    pictures.speed([runs.bar for runs in peer_runs(about["peers"])], lines, folder / "speed.svg")
    run, other = ({m: named[name].points(m) for m in VARIANTS} for name in ("training", "training, slower CPU"))
    pictures.training(run, other, folder / "training.svg")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of results.md and pictures/")
    docs = parser.parse_args(arguments).docs
    about = tomllib.loads(TABLES.read_text(encoding="utf-8"))
    (docs / "pictures").mkdir(parents=True, exist_ok=True)
    groups = [Group.read(group) for group in about["accuracy"]]
    (docs / "results.md").write_text(page(about, groups), encoding="utf-8")
    draw(about, groups, docs / "pictures")


if __name__ == "__main__":
    main()
