"""The data and the model of a recipe, by its kind."""

from collections.abc import Callable
from typing import Any

from titanslab.training.model import build_model, set_manner
from titanslab.training.recipe import Recipe
from titanslab.training.sequence_sections import SEQUENCES
from titanslab.training.series_sections import SERIES
from titanslab.training.sources import Reading, RunData, open_data


def open_recipe(
    recipe: Recipe, processes: int, reading: Reading, tokenizer: Any, say: Callable[[str], None]
) -> tuple[RunData, Callable[[], Any]]:
    """The data of a run, and a function that makes its model.

    Args:
        processes: that share the rows of a step.
        reading, tokenizer: see `open_data`.
        say: called with facts about the data.
    """
    if recipe.kind == SERIES:
        from titanslab.training.series import open_series

        return open_series(recipe, say)
    if recipe.kind == SEQUENCES:
        from titanslab.training.sequences import open_sequences

        return open_sequences(recipe, say)
    data = open_data(recipe, processes, reading=reading, tokenizer=tokenizer)

    def make() -> Any:
        model = build_model(recipe, data.tokenizer)
        set_manner(recipe.model, model, data.tokenizer)
        return model

    return data, make
