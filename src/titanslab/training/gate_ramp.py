"""A forced start of the memories of a graft: their outputs rise from 0 to their full size over the first steps."""

from typing import Any

from torch import nn
from transformers import TrainerCallback

from titanslab.graft import graft_of


def draw_outputs(model: Any) -> None:
    """Draw the output projections of the memories as those of a new `NeuralMemory`, with torch's random numbers."""
    for memory in graft_of(model).memories:
        nn.init.normal_(memory.output_projection.weight, std=0.1 * memory.hidden_size**-0.5)


class GateRamp(TrainerCallback):
    """Multiplies the memories' outputs by `step / steps`, until that is 1.

    Args:
        model: with a graft.
        steps: at least 1.
    """

    def __init__(self, model: Any, steps: int) -> None:
        self.steps, self.share = steps, 1.0
        last = [getattr(memory, "attention", memory) for memory in graft_of(model).memories]  # makes the output
        self.handles = [module.register_forward_hook(self._scale) for module in last]

    def _scale(self, module: nn.Module, args: Any, output: Any) -> Any:
        return (self.share * output[0], *output[1:]) if self.share < 1 else output

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.share = min(1.0, (state.global_step + 1) / self.steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for handle in self.handles:
            handle.remove()
