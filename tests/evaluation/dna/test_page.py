"""The recipe of docs/dna.md is one, and its table has the published figures."""

from pathlib import Path

from pages import blocks
from titanslab.documents import parse_toml
from titanslab.tasks.dna.published import PROTOCOLS
from titanslab.training.recipe import parse_recipe

PAGE = Path(__file__).parents[3] / "docs" / "dna.md"


def test_recipe_of_the_page():
    (recipe,) = (block.code for block in blocks(PAGE) if block.language == "toml")
    assert parse_recipe(parse_toml(recipe, origin="page")).data.tokenizer == "dna"


def test_figures_of_the_page():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    shown = {(line[1], line[0].partition(" (")[0]): line[2:] for line in lines if len(line) == 7}
    for name, protocol in (("caduceus", "Caduceus"), ("hyenadna", "HyenaDNA")):
        for model, figures in PROTOCOLS[name].rows.items():
            wanted = ["–" if figure is None else str(figure) for figure in figures]
            assert shown[protocol, model.partition(" (")[0]] == wanted, model
