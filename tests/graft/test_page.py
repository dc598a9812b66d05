"""The code of docs/graft.md runs in the order of the page."""

import shlex
import tomllib
from pathlib import Path

from pages import blocks
from titanslab.cli.graft import graft
from titanslab.cli.words import check_words
from titanslab.training.recipe import parse_recipe

PAGE = Path(__file__).parents[2] / "docs" / "graft.md"


def test_the_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(PAGE):
        if block.language != "python":  # a recipe and a command, see the test below
            continue
        exec(compile(block.code, str(PAGE), "exec"), names)
    assert names["cache"].columns == 1000
    assert names["cache"].layers[0].keys.shape[2] == 131
    assert names["answer"].shape == (1, 13)


def test_the_recipe_and_the_command_are_right():
    of = {block.language: block.code for block in blocks(PAGE)}
    recipe = parse_recipe(tomllib.loads(of["toml"]))
    assert (recipe.kind, recipe.model.train) == ("graft", "lora")
    titans, verb, *words = shlex.split(of["sh"])
    assert (titans, verb) == ("titans", "graft")
    check_words(graft, words, "titans graft")
