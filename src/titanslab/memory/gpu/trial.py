"""One trial of the fused kernels on this machine: are they right, and how long do they take beside PyTorch operations?

Run as a process of its own (`python -m titanslab.memory.gpu.trial JSON`), so that a kernel that crashes or hangs
takes nobody with it.
"""

import json
import sys
from functools import partial

import torch
from torch import Tensor

from titanslab.memory.compare import distance, seconds
from titanslab.memory.gpu.verdict import ROWS, TOKENS, Outcome, Trial, allowed
from titanslab.memory.network import MemoryParams
from titanslab.memory.op import neural_memory
from titanslab.memory.state import MemoryState

TURNS = 11


class _Problem:
    """A calm memory with random inputs; gates about where a layer starts."""

    def __init__(self, trial: Trial, rows: int, tokens: int) -> None:
        device, draw = torch.device(trial.device), torch.Generator().manual_seed(0)
        heads = min(rows, 8)
        batch, width, self.network, self.chunk_size = rows // heads, trial.head_dim, trial.network(), trial.chunk_size

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(device)

        dtype = getattr(torch, trial.dtype)
        shape = (batch, tokens, heads, width)
        self.inputs = [(normal(*shape) * s).to(dtype).requires_grad_() for s in (width**-0.5, width**-0.5, 1.0)]
        eta = torch.sigmoid(normal(*shape[:3]))
        gates = (0.05 * torch.sigmoid(normal(*shape[:3])) * (1 - eta), eta, torch.sigmoid(normal(*shape[:3]) - 5))
        self.gates = [g.requires_grad_() for g in gates]
        weights = [(normal(heads, i, o) * i**-0.5).requires_grad_() for i, o in self.network.widths(width)]
        norm = [torch.ones(heads, width, device=device), torch.zeros(heads, width, device=device)]
        norm = [n.requires_grad_() for n in norm] if trial.norm else []
        self.params = MemoryParams(tuple(weights), *norm)
        self.leaves = [*self.inputs, *self.gates, *weights, *norm]
        self.dy = normal(*shape).to(dtype)

    def whole(self, backend: str) -> list[Tensor]:
        """Output, end weights and all gradients."""
        y, state = self._call([*self.inputs, *self.gates], None, backend)
        gradients = torch.autograd.grad(y, self.leaves, self.dy, materialize_grads=True)
        return [y.detach(), *(w.detach() for w in state.weights), *gradients]

    def step(self, backend: str, state: MemoryState) -> list[Tensor]:
        """Output and weights after one more token."""
        with torch.no_grad():
            y, after = self._call([x[:, :1] for x in (*self.inputs, *self.gates)], state, backend)
        return [y, *after.weights]

    def state(self) -> MemoryState:
        """What has read the first half of the tokens."""
        with torch.no_grad():
            half = [x[:, : max(1, x.shape[1] // 2)] for x in (*self.inputs, *self.gates)]
            return self._call(half, None, "chunked")[1]

    def _call(self, inputs: list[Tensor], state: MemoryState | None, backend: str) -> tuple:
        q, k, v, theta, eta, alpha = inputs
        form = (self.network, self.params, state, self.chunk_size, backend)
        return neural_memory(q, k, v, theta, eta, alpha, *form)


def run(trial: Trial, rows: int = ROWS, tokens: int = TOKENS, turns: int = TURNS) -> Outcome:
    """Compare and time; what a kernel raises is an outcome too."""
    device = torch.device(trial.device)
    try:
        problem = _Problem(trial, rows, tokens)
        apart = distance(problem.whole("triton"), problem.whole("chunked"))
        state = problem.state()
        apart_step = distance(problem.step("triton", state), problem.step("recurrent", state))
        if max(apart, apart_step) > allowed(trial.dtype):
            return Outcome(distance=apart, distance_step=apart_step)  # nobody needs to know how fast it is
        long = seconds({n: partial(problem.whole, n) for n in ("chunked", "triton")}, device, turns)
        step = seconds({n: partial(problem.step, n, state) for n in ("recurrent", "triton")}, device, turns)
    except torch.OutOfMemoryError:
        return Outcome(error="too little memory was free", passing=True)
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}")
    return Outcome(long["chunked"], long["triton"], step["recurrent"], step["triton"], apart, apart_step)


def main() -> None:
    """The trial in the first argument, its outcome as the last line of the output."""
    print(json.dumps(run(Trial(**json.loads(sys.argv[1])))._asdict()))


if __name__ == "__main__":
    main()
