"""The number of parameters of a row, and the width with which a row has as many parameters as another one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from titanslab.training.recipe import Recipe

BASES = 500
ROUNDS = 12  # most guesses of a width; a count that is linear in the width takes three


class Fitted(NamedTuple):
    """Options of a model, the number of its parameters with them, and the number that was wanted."""

    options: dict[str, int]
    parameters: int
    wanted: int


def parameters(recipe: Recipe, vocabulary: int) -> int:
    """Number of parameters of the model that a first stage trains.

    A forecasting model has one column; a classifier has two labels, and reads `BASES` bases where the recipe sets no
    length. The size of a graft depends on its base, and its number here is 0. No memory is allocated for them.
    """
    import torch

    from titanslab.data.tokenizer import BYTE, DNA, load_tokenizer
    from titanslab.training.graft_sections import GRAFT
    from titanslab.training.model import build_model
    from titanslab.training.sequence_sections import SEQUENCES
    from titanslab.training.series_sections import SERIES

    if recipe.kind == GRAFT:
        return 0
    recipe = copy.deepcopy(recipe)
    with torch.device("meta"):
        if recipe.kind == SERIES:
            from titanslab.training.series import build_forecaster, forecaster_config

            model = build_forecaster(recipe.model, forecaster_config(recipe.model, 1))
        elif recipe.kind == SEQUENCES:
            from titanslab.training.sequences import build_classifier

            tokenizer = load_tokenizer(recipe.data.tokenizer)
            model = build_classifier(recipe.model, ["0", "1"], tokenizer, recipe.data.max_length or BASES)
        else:
            recipe.model.options["vocab_size"] = vocabulary
            name = recipe.data.tokenizer
            model = build_model(recipe, load_tokenizer(name if name in (BYTE, DNA) else BYTE))
        return sum(p.numel() for p in model.parameters())


def fit_size(
    recipe: Recipe, wanted: int, widths: Mapping[str, int], vocabulary: int, within: float = 0.03, name: str = ""
) -> Fitted:
    """Choose the widths of a model so that it has `wanted` parameters.

    Args:
        recipe: of a first stage; its own values of the widths are where the search begins.
        wanted: number of parameters.
        widths: options of the model with the step of each: with `{"hidden_size": 4, "head_dim": 1}` the two are
            4 n and n, and n is chosen.
        vocabulary: number of tokens.
        within: largest share of `wanted` by which the count may differ.
        name: of the row, for the error.

    Raises:
        ValueError: no n comes as near as `within`; the message has the nearest count.
    """
    counts: dict[int, int] = {}

    def options(n: int) -> dict[str, int]:
        return {key: step * n for key, step in widths.items()}

    def count(n: int) -> int:
        if n not in counts:
            tried = copy.deepcopy(recipe)
            tried.model.options |= options(n)
            counts[n] = parameters(tried, vocabulary)
        return counts[n]

    key, step = next(iter(widths.items()))
    own: Any = recipe.model.options.get(key)
    before = own // step if isinstance(own, int) and own >= step else 32
    now = before + max(1, before // 4)
    for _ in range(ROUNDS):
        slope = (count(now) - count(before)) / (now - before)
        before, now = now, max(1, round(now + (wanted - count(now)) / slope)) if slope else now
        if now in counts:
            break
    best = min(counts, key=lambda n: (abs(counts[n] - wanted), n))
    if abs(counts[best] - wanted) > within * wanted:
        raise ValueError(
            f"row {name!r} cannot have {wanted:,} parameters: with {options(best)} it has {counts[best]:,}, more than "
            f"{within:.1%} away; change the other options of the row, or its `widths`"
        )
    return Fitted(options(best), counts[best], wanted)
