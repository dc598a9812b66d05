"""The cost of a recipe before it is run: parameters, tokens, FLOPs, bytes of a GPU and hours; no weights are made."""

from dataclasses import dataclass
from typing import Any

from titanslab.models.config import TitansConfig
from titanslab.models.cost import forward_flops, num_parameters
from titanslab.models.training_memory import Setting, TrainingMemory, training_memory
from titanslab.training.model import model_config, needs_tokenizer
from titanslab.training.recipe import TEXT, Recipe
from titanslab.training.sources import open_tokenizer

H100_FLOPS = 989.4e12  # of bfloat16 products a second without sparsity, NVIDIA's data sheet of the SXM module
TRAINING = 3  # forward passes that a step costs: backward has two products for each of the forward pass


@dataclass(frozen=True)
class Plan:
    """The cost of a recipe on a number of GPUs.

    Args:
        parameters: of the model; tied ones count once.
        rows, passes: rows of a step on all GPUs; forward passes of a step on each.
        tokens: that the whole run reads.
        flops_per_token: of training, by the model's products, without those that are computed again; None for models of
            transformers, which the cost model does not know.
        memory: of a GPU, with the checkpointing of the recipe; other: with the other choice; both None likewise.
    """

    config: Any
    parameters: int
    rows: int
    passes: int
    tokens: int
    flops_per_token: float | None
    memory: TrainingMemory | None
    other: TrainingMemory | None

    def hours(self, gpus: int, mfu: float) -> float | None:
        """Hours of the run at a share `mfu` of the largest rate of H100s."""
        if self.flops_per_token is None:
            return None
        return self.tokens * self.flops_per_token / (gpus * mfu * H100_FLOPS) / 3600


def check_text(recipe: Recipe) -> None:
    """ValueError unless the recipe trains a language model, whose cost is known before its data are read."""
    if recipe.kind != TEXT:
        raise ValueError(f"the recipe has [{recipe.kind}]; the cost is computed for language models, with [data]")


def recipe_config(recipe: Recipe) -> Any:
    """The config of a recipe's model; its tokenizer is opened only where the shapes depend on it."""
    check_text(recipe)
    return model_config(recipe, open_tokenizer(recipe.data) if needs_tokenizer(recipe.model) else None)


def make_plan(recipe: Recipe, gpus: int = 1) -> Plan:
    """The plan of a recipe on `gpus` GPUs; ValueError where they cannot share the rows of a step evenly."""
    check_text(recipe)
    config, settings, tokens = recipe_config(recipe), recipe.training, recipe.data.sequence_length
    parameters = num_parameters(config)
    flops: float | None = None
    memories: list[TrainingMemory | None] = [None, None]
    if isinstance(config, TitansConfig):
        flops = TRAINING * forward_flops(config, 1, tokens) / tokens
        for i, checkpointing in enumerate((settings.gradient_checkpointing, not settings.gradient_checkpointing)):
            setting = Setting(
                settings.batch_size,
                tokens,
                devices=gpus,
                sharding=settings.sharding,
                bf16=settings.precision == "bf16",
                checkpointing=checkpointing,
            )
            memories[i] = training_memory(config, setting, parameters)
    rows = settings.rows(gpus)
    return Plan(
        config=config,
        parameters=parameters,
        rows=rows,
        passes=settings.passes(gpus),
        tokens=settings.steps * rows * tokens,
        flops_per_token=flops,
        memory=memories[0],
        other=memories[1],
    )
