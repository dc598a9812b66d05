"""The price of writes rises: a memory that pays before it has learned to be of use stays shut."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class WriteCostWarmup(TrainerCallback):
    """Takes the model's `memory_write_cost` from nothing to the whole of it over the first `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.write_cost_share = min(1.0, state.global_step / self.steps)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.write_cost_share = 1.0
