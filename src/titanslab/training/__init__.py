"""Training: recipes, the run folder, and the wiring to the Hugging Face Trainer."""

from titanslab.training.recipe import (
    DataRecipe,
    ModelRecipe,
    Recipe,
    TrainingRecipe,
    load_recipe,
    parse_recipe,
)

__all__ = [
    "DataRecipe",
    "ModelRecipe",
    "Recipe",
    "TrainingRecipe",
    "load_recipe",
    "parse_recipe",
    "train",
]


def __getattr__(name: str) -> object:
    if name == "train":  # brings torch along
        from titanslab.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
