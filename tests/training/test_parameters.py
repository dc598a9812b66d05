"""`model.parameters`, and the recipes of the paper's sizes: each variant has the parameters that its name says."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from titanslab import TitansConfig
from titanslab.models.config import PRESETS, VARIANTS
from titanslab.models.cost import num_parameters
from titanslab.training.model import model_config
from titanslab.training.parameters import fit_parameters
from titanslab.training.plan import make_plan
from titanslab.training.recipe import load_recipe, parse_recipe

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
SIZES = {"170m": 170e6, "340m": 340e6, "400m": 400e6, "760m": 760e6, "1.3b": 1.3e9}
# Table 5 of the camera-ready: blocks, width, heads, peak rate, billions of tokens; 400m is ours
TABLE = {
    "170m": (12, 768, 16, 3e-3, 15),
    "340m": (24, 1024, 16, 1.5e-3, 15),
    "400m": (28, 1024, 16, 1.5e-3, 15),
    "760m": (24, 1536, 16, 1.25e-3, 30),
    "1.3b": (18, 2048, 8, 7e-4, 100),
}


def test_there_is_a_recipe_of_each_size_of_the_paper():
    assert {path.stem for path in PAPER.glob("*.toml")} == set(SIZES) == set(PRESETS) - {"tiny"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_has_the_parameters_of_its_name(size, variant):
    config = model_config(load_recipe(PAPER / f"{size}.toml", [f"model.variant={variant}"]), None)
    assert config.variant == variant
    assert num_parameters(config) == pytest.approx(SIZES[size], rel=0.03)
    if variant != "attention":
        text = (PAPER / f"{size}.toml").read_text()
        assert str(config.intermediate_size) in text, "the width that the recipe's comment names"


@pytest.mark.parametrize("size", SIZES)
def test_settings_are_those_of_the_paper(size):
    recipe = load_recipe(PAPER / f"{size}.toml")
    blocks, width, heads, rate, tokens = TABLE[size]
    config, settings = model_config(recipe, None), recipe.training
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (blocks, width, heads)
    assert (config.vocab_size, config.segment_len, config.window_size) == (32000, 512, 2048)
    assert (config.num_persistent_tokens, config.chunk_size) == (128, 16)
    plan = make_plan(recipe, 8)
    assert plan.rows * recipe.data.sequence_length == 2**19
    assert plan.tokens == pytest.approx(tokens * 1e9, rel=1e-3)
    assert settings.warmup_steps * 2**19 == pytest.approx(1e9, rel=1e-3)
    assert (settings.learning_rate, settings.weight_decay, settings.gradient_clip) == (rate, 0.1, 1.0)
    assert (settings.optimizer, settings.schedule, settings.precision) == ("adamw", "cosine", "bf16")


def test_the_count_by_blocks_is_that_of_the_model():
    config = TitansConfig.preset("tiny", variant="mag", num_hidden_layers=5)
    fit_parameters(config, 4_000_000)
    assert config.intermediate_size % 8 == 0
    from titanslab import TitansForCausalLM

    count = sum(p.numel() for p in TitansForCausalLM(config).parameters())
    assert count == num_parameters(config) == pytest.approx(4e6, rel=0.01)


def test_models_of_transformers_are_fitted_too():
    config = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    fit_parameters(config, 60_000)
    assert num_parameters(config) == pytest.approx(60_000, rel=0.03)


def test_a_number_out_of_reach_says_what_is_nearest():
    config = TitansConfig.preset("340m", variant="mag")
    with pytest.raises(
        ValueError, match=r"model.parameters = 100,000,000 is out of reach: with MLPs 64 wide, .* has 3"
    ):
        fit_parameters(config, 100_000_000)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"parameters": 10**6, "intermediate_size": 64}, "which model.intermediate_size = 64 sets already"),
        ({"parameters": 10**6, "pretrained": "run"}, "which model.pretrained = 'run' sets already"),
        ({"parameters": 0}, "model.parameters"),
    ],
)
def test_values_that_cannot_work_together(model, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe({"model": model, "data": {"train": "x"}})
