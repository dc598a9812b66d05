"""Two ways to compute one thing, side by side: how far apart their results are, and how long each takes."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def distance(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest relative distance of a tensor from the one that is wanted; infinite where one is not finite."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        apart = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        worst = max(worst, apart if apart == apart else float("inf"))
    return worst


def seconds(calls: Mapping[str, Callable[[], object]], device: torch.device, turns: int) -> dict[str, float]:
    """The median time of each call, all in turns, after one call that is not counted."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda *_: None
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
