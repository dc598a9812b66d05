"""The data and the model of a recipe, by its kind."""

from collections.abc import Callable
from functools import partial
from typing import Any

from titanslab.training.carry import TitansCarry, check_carries
from titanslab.training.carry_trainer import CarryTrainer
from titanslab.training.graft_sections import GRAFT
from titanslab.training.in_order import read_in_order
from titanslab.training.model import build_model, set_manner
from titanslab.training.recipe import TEXT, Recipe
from titanslab.training.sequence_sections import SEQUENCES
from titanslab.training.series_sections import SERIES
from titanslab.training.sources import Reading, RunData, open_data, open_tokenizer
from titanslab.training.trainer import TitansTrainer


def open_recipe(
    recipe: Recipe, processes: int, reading: Reading, tokenizer: Any, say: Callable[[str], None]
) -> tuple[RunData, Callable[[], Any]]:
    """The data of a run, and a function that makes its model.

    Args:
        processes: that share the rows of a step.
        reading, tokenizer: see `open_data`.
        say: called with facts about the data.
    """
    if recipe.kind == GRAFT:
        from titanslab.training.graft import open_graft

        return open_graft(recipe, processes, reading, say)
    if recipe.kind == SERIES:
        from titanslab.training.series import open_series

        return open_series(recipe, say)
    if recipe.kind == SEQUENCES:
        from titanslab.training.sequences import open_sequences

        return open_sequences(recipe, say)
    if recipe.data.carry:
        tokenizer = open_tokenizer(recipe.data, show=reading.leads) if tokenizer is None else tokenizer
        data = read_in_order(recipe.data, recipe.training, tokenizer, processes, reading, say)
    else:
        data = open_data(recipe, processes, reading=reading, tokenizer=tokenizer)

    def make() -> Any:
        model = build_model(recipe, data.tokenizer)
        if recipe.data.carry:
            check_carries(model.config)
        set_manner(recipe.model, model, data.tokenizer)
        return model

    return data, make


def trainer_kind(recipe: Recipe) -> Callable[..., TitansTrainer]:
    """The class of a recipe's Trainer, or a function with its arguments."""
    if recipe.kind == GRAFT:
        from titanslab.training.graft_trainer import GraftTrainer

        return partial(GraftTrainer, section=recipe.model)
    if recipe.kind == TEXT and recipe.data.carry:
        return partial(CarryTrainer, carry=TitansCarry)
    return TitansTrainer
