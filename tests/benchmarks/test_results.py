"""docs/results.md is what its command makes of the files of results, and its tables can be read."""

import re
from pathlib import Path

import pytest
from benchmarks.page.files import ROOT, Run, load, read_runs
from benchmarks.page.quality import Group
from benchmarks.page.speed import ratios

from benchmarks import results

DOCS = ROOT / "docs"
PICTURES = ("recall", "babilong", "speed", "training")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    results.main(["--docs", str(folder)])
    return folder


def test_the_page_is_that_of_the_files(made):
    message = "docs/results.md is old; run: python -m benchmarks.results"
    assert (made / "results.md").read_text() == (DOCS / "results.md").read_text(), message


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_drawn(made, name):
    assert (made / "pictures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    assert (DOCS / "pictures" / f"{name}.svg").is_file()


def test_cells_are_short_and_hold_one_number(made):
    for line in (made / "results.md").read_text().splitlines():
        if line.startswith("|"):
            for cell in line.strip("|").split("|"):
                shown = re.sub(r"\]\(.*?\)", "]", cell).strip()
                assert len(shown) <= 60, line
            for cell in line.strip("|").split("|")[1:]:
                if re.fullmatch(r" \d+k?-\d+k? ", cell):
                    continue  # a span of positions, the heading of a column
                assert len(re.findall(r"\d[\d,.]*", re.sub(r"\(.*?\)", "", cell))) <= 1, line


def test_cells_are_means_over_the_seeds():
    runs = [
        Run({("a", 16, False): (100.0, 4), ("b", 16, False): (50.0, 4)}),
        Run({("a", 16, False): (80.0, 4), ("b", 16, False): (30.0, 4), ("a", 32, False): (10.0, 2)}),
    ]
    about = {"tables": {"average": ["a", "b"]}, "unit": 1000}
    group = Group(about, {"ours": runs}, [16, 32], ["a", "b"])
    assert group.means(runs, ["a", "b"]) == [65.0, None]
    assert group.means(runs, ["a"]) == [90.0, 10.0]
    assert "| ours | average | 20 | |" in group.spread()
    assert "| ours | 8 | 2 |" in group.samples()


def test_ratios_are_those_of_the_report():
    report = load("benchmarks/results/2026-11-28_cpu-2core_memory_op_cpu16.json")["results"][0]
    turns = ratios(report["candidates"], "titanslab / titans-pytorch")
    assert [min(turns), max(turns)] == pytest.approx(report["ratios"]["titanslab / titans-pytorch"]["range"])


def test_a_missing_row_is_named():
    with pytest.raises(ValueError, match="the file has no answers of this row"):
        read_runs("benchmarks/results/2026-11-24_cpu-2core_niah.json#nobody")
