"""Warn of a gradient that is far longer than those of the steps before, and name the module where it begins."""

import statistics
import warnings
from collections import deque

from torch import Tensor, nn

from titanslab.training.watchdog import local_part, parameter_name

JUMP = 50.0  # times the median norm
STEPS = 50  # whose median is taken; one warning in so many steps
LEAST = 10  # steps before the first warning


class GradientJumps:
    """Remembers the gradient norms of the last steps.

    A memory whose writes have become unstable multiplies the gradient from chunk to chunk, and passes it on to all that
    lies before it. So the module where a jump begins is the one nearest to the loss with a long gradient.
    """

    def __init__(self) -> None:
        self.norms: deque[float] = deque(maxlen=STEPS)
        self.silent = 0

    def look(self, model: nn.Module, norms: Tensor, step: int) -> None:
        """Warn if the gradient of `step` is a jump.

        Args:
            model: the model in training.
            norms: the gradient norm of each parameter that has a gradient, in their order.
            step: its number, for the message.
        """
        norm, self.silent = float(norms.square().sum().sqrt()), self.silent - 1
        usual = statistics.median(self.norms) if len(self.norms) >= LEAST else 0.0
        self.norms.append(norm)
        if not 0 < usual * JUMP < norm or self.silent > 0:
            return
        self.silent = STEPS
        names = [name for name, p in model.named_parameters() if p.grad is not None and local_part(p.grad).numel()]
        begins = [name for name, one in zip(names, norms.tolist(), strict=True) if one > 10 * usual]
        module = parameter_name(begins[-1] if begins else names[int(norms.argmax())]).rpartition(".")[0]
        more = (
            " or model.memory_theta_bias, or raise model.memory_chunk_coherence (at most 1)"
            if ".memory" in f".{module}"
            else ""
        )
        warnings.warn(
            f"step {step}: the gradient is {norm / usual:,.0f} times as long as in steps before (norm {norm:,.4g}); "
            f"it begins in {module}. If the loss rises with it, lower training.learning_rate{more}",
            RuntimeWarning,
            stacklevel=1,
        )
