"""The code of docs/dna.md runs on small files, and its table has the published figures."""

from pathlib import Path

import numpy as np

from pages import blocks
from titanslab.documents import parse_toml
from titanslab.tasks.dna.published import PROTOCOLS
from titanslab.training.recipe import parse_recipe

PAGE = Path(__file__).parents[3] / "docs" / "dna.md"


def test_code_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("ACGT"), 30)) for _ in range(40)]
    Path("promoters.tsv").write_text("seq\tlabel\n" + "".join(f"{row}\t{i % 2}\n" for i, row in enumerate(rows)))
    for name in ("train.fa", "test.fa"):
        Path(name).write_text(">x\n" + "".join(rows) + "\n")
    found = {}
    for language, code, _ in blocks(PAGE):
        if language == "python":
            exec(code, found)
        elif language == "toml":
            assert parse_recipe(parse_toml(code, origin="page")).data.tokenizer == "dna"
    assert found["loss"].requires_grad
    assert found["found"]["bits"] < 3


def test_figures_of_the_page():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    shown = {(line[1], line[0].partition(" (")[0]): line[2:] for line in lines if len(line) == 7}
    for name, protocol in (("caduceus", "Caduceus"), ("hyenadna", "HyenaDNA")):
        for model, figures in PROTOCOLS[name].rows.items():
            wanted = ["–" if figure is None else str(figure) for figure in figures]
            assert shown[protocol, model.partition(" (")[0]] == wanted, model
