"""The tables of docs/scale.md are what the cost model computes for the paper's recipes."""

from pathlib import Path

import pytest

from titanslab import TitansConfig
from titanslab.models.cost import fast_weights
from titanslab.models.training_memory import Setting, block_activations, block_states, training_memory
from titanslab.training.model import model_config
from titanslab.training.plan import make_plan
from titanslab.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"
SIZES = ("170m", "340m", "400m", "760m", "1.3b")
MEMORIES = ("lmm", "mal", "mag", "mac")
ROW = Setting(1, 4096)


def recipe(size, variant):
    path = ROOT / "recipes" / "paper" / f"{size}.toml"
    return load_recipe(path, [f"model.variant={variant}", "training.sharding=fsdp"])


def cost_row(size, variant):
    plan = make_plan(recipe(size, variant), 8)
    cells = (
        f"`{size}`", f"`{variant}`", f"{plan.parameters / 1e6:,.0f}", f"{plan.config.intermediate_size:,}",
        f"{plan.flops_per_token / 1e9:.2f}", f"{plan.memory.total / 2**30:.1f}", f"{plan.other.total / 2**30:.0f}",
        f"{plan.hours(8, 0.4):.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def state_row(size):
    configs = {variant: model_config(recipe(size, variant), None) for variant in MEMORIES}
    states = [8 * fast_weights(configs["lmm"]), *(block_states(configs[variant], ROW) for variant in ("lmm", "mac"))]
    tokens = [block_activations(config, ROW) / ROW.tokens / 2**10 for config in configs.values()]
    cells = (f"`{size}`", *(f"{size / 2**20:,.0f} MiB" for size in states), *(f"{size:.0f} KiB" for size in tokens))
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_computed(size):
    page = PAGE.read_text()
    assert state_row(size) in page
    assert not [row for row in (cost_row(size, variant) for variant in MEMORIES) if row not in page]


def test_limits_in_the_text():
    plan = make_plan(recipe("1.3b", "lmm"), 8)
    assert 20 * plan.parameters / 2**30 == pytest.approx(24, abs=0.5)
    assert block_states(plan.config, ROW) / 2**30 == pytest.approx(1.4, abs=0.05)
    config = model_config(recipe("340m", "mac"), None)
    long = training_memory(config, Setting(1, 300_000, devices=8, sharding="fsdp", checkpointing=True))
    assert 60 < long.total / 2**30 < 80
    wide = TitansConfig.preset("1.3b", variant="lmm")
    for name in ("num_memory_heads", "memory_expansion"):
        halved = TitansConfig.preset("1.3b", variant="lmm", **{name: 16 if name == "num_memory_heads" else 2})
        assert fast_weights(halved) == fast_weights(wide) / 2
