"""Cases of the Triton kernels, which run on a GPU if there is one, else in Triton's interpreter."""

import torch
from memory_cases import Case, Problem, distance, make, outputs_and_gradients

from titanslab.memory import MemoryParams, MemoryState
from tolerances import EXACT, FLOAT32_FLOOR, LOW_PRECISION_FACTOR

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(problem: Problem) -> Problem:
    """The problem with its leaves on `DEVICE`."""
    moved: dict[int, torch.Tensor] = {}

    def move(t: torch.Tensor | None) -> torch.Tensor | None:
        if t is None:
            return None
        if id(t) not in moved:
            moved[id(t)] = t.detach().to(DEVICE).requires_grad_(t.requires_grad)
        return moved[id(t)]

    def state(s: MemoryState | None) -> MemoryState | None:
        return None if s is None else s.map(lambda t: move(t))

    params = MemoryParams(
        tuple(move(w) for w in problem.params.weights), move(problem.params.norm_weight), move(problem.params.norm_bias)
    )
    leaves = {n: move(t) for n, t in problem.leaves.items()}
    return Problem(
        leaves,
        problem.network,
        params,
        state(problem.state),
        state(problem.initial),
        move(problem.mask),
        move(problem.reset),
        problem.chunk_size,
        problem.forget_to,
    )


def check(case: Case) -> None:
    """Compares outputs and gradients with the token loop: to float64 in the interpreter, to float32 eager on a GPU."""
    truth = outputs_and_gradients(make(case), "reference")
    if DEVICE.type == "cpu":
        got, eager = outputs_and_gradients(make(case), "triton"), truth
    else:  # on a GPU the kernels have no float64
        single = case.with_(dtype=torch.float32)
        got = outputs_and_gradients(on_device(make(single)), "triton")
        eager = outputs_and_gradients(make(single), "reference")
    for part in (0, 1):
        for name, want in truth[part].items():
            allowed = EXACT
            if DEVICE.type != "cpu":
                allowed = LOW_PRECISION_FACTOR * distance(eager[part][name], want) + FLOAT32_FLOOR
            assert distance(got[part][name].cpu(), want) < allowed, name
