"""Rows of one size: the width that gives a model the number of parameters of another."""

import pytest

from titanslab.experiments.size import fit_size, parameters
from titanslab.training.recipe import parse_recipe

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": True}
ATTENTION = SHAPE | {"num_attention_heads": 2, "num_key_value_heads": 2}
MODELS = {
    "mac": ({"variant": "mac", **SHAPE, "num_attention_heads": 2}, {"intermediate_size": 1}),
    "llama": ({"architecture": "llama", **ATTENTION}, {"intermediate_size": 1}),
    "mamba2": (
        {"architecture": "mamba2", "num_hidden_layers": 2, "num_heads": 4, "n_groups": 1, "state_size": 8}
        | {"tie_word_embeddings": True},
        {"hidden_size": 2, "head_dim": 1},
    ),
}


def recipe(model):
    return parse_recipe({"model": model, "data": {"train": "a.txt"}})


@pytest.mark.parametrize("name", MODELS)
def test_a_width_is_found_and_the_model_has_the_count(name):
    model, widths = MODELS[name]
    wanted = parameters(recipe({"variant": "lmm", **SHAPE, "num_attention_heads": 2, "intermediate_size": 96}), 512)
    fitted = fit_size(recipe(model), wanted, widths, 512, name=name)
    assert fitted.options.keys() == widths.keys()
    assert abs(fitted.parameters - wanted) <= 0.03 * wanted
    assert parameters(recipe(model | fitted.options), 512) == fitted.parameters
    key, step = next(iter(widths.items()))
    for other in (-1, 1):  # its neighbours are no nearer
        n = fitted.options[key] // step + other
        there = parameters(recipe(model | {key: step * n for key, step in widths.items()}), 512)
        assert abs(there - wanted) >= abs(fitted.parameters - wanted)


def test_a_row_that_cannot_have_the_size_is_named():
    model, widths = MODELS["llama"]
    with pytest.raises(ValueError, match=r"row 'llama' cannot have 5,000 parameters: with .*'intermediate_size': 1"):
        fit_size(recipe(model), 5_000, widths, 512, name="llama")
