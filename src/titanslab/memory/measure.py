"""Compare and time the ways to run a memory on one device, and keep the fastest right one: `titans info --measure`."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory import measured
from titanslab.memory.backends import cpu_kernel
from titanslab.memory.chunked.op import chunked
from titanslab.memory.gpu import fused
from titanslab.memory.gpu.plan import supported
from titanslab.memory.measured import Measured
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.op import neural_memory
from titanslab.memory.recurrent import recurrent
from titanslab.memory.reference import Tokens
from titanslab.memory.state import MemoryState

# heads of the memory and rows of the batch: together about one program for each multiprocessor of a GPU
HEADS, GPU_BATCH = 8, 16
TOKENS = 512
TURNS = 5
# largest relative distance of an output or a gradient from the PyTorch loop, by dtype of q, k and v
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


class Candidate(NamedTuple):
    """One way that was tried. seconds: median, None where it is not taken, for the `reason`. distance: relative."""

    name: str
    seconds: float | None
    distance: float
    reason: str


class Comparison(NamedTuple):
    """All ways of one shape: `reading` is forward and backward over many tokens, `decoding` one token."""

    reading: list[Candidate]
    decoding: list[Candidate]
    best: Measured


class Problem:
    """A memory with random inputs, its gates about where a layer starts."""

    def __init__(self, device: torch.device, dtype: torch.dtype, network: MemoryNetwork, head_dim: int, tokens: int):
        draw, batch = torch.Generator().manual_seed(0), GPU_BATCH if device.type == "cuda" else 1
        wide = torch.promote_types(dtype, torch.float32)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(device, wide)

        shape, gate_shape = (batch, tokens, HEADS, head_dim), (batch, tokens, HEADS)
        scales = (head_dim**-0.5, head_dim**-0.5, 1.0)
        self.inputs = [(normal(*shape) * scale).to(dtype).requires_grad_() for scale in scales]
        eta = torch.sigmoid(normal(*gate_shape))
        theta = 0.05 * torch.sigmoid(normal(*gate_shape)) * (1 - eta)
        self.gates = [g.requires_grad_() for g in (theta, eta, torch.sigmoid(normal(*gate_shape) - 5))]
        weights = [(normal(HEADS, i, o) * i**-0.5).requires_grad_() for i, o in network.widths(head_dim)]
        norm = [torch.ones_like(self.inputs[0][0, 0], dtype=wide), torch.zeros_like(self.inputs[0][0, 0], dtype=wide)]
        norm = [n.detach().requires_grad_() for n in norm] if network.norm else []
        self.params, self.network, self.wide = MemoryParams(tuple(weights), *norm), network, wide
        self.leaves = [*self.inputs, *self.gates, *weights, *norm]
        self.dy = normal(*shape).to(dtype)

    def tokens(self, name: str, stop: int | None = None) -> Tokens:
        """The first tokens as the way `name` takes them: the fused kernels read q, k and v in their own dtype."""
        q, k, v = (x[:, :stop] if name == "triton" else x[:, :stop].to(self.wide) for x in self.inputs)
        row = tuple(g[:, :stop, :, None] for g in self.gates)
        return Tokens(q, k, v, [row] * self.network.depth, None, None)  # type: ignore[list-item]

    def whole(self, name: str, chunk_size: int) -> list[Tensor]:
        """Output, end weights and all gradients."""
        initial = MemoryState.initial(self.params, 1)
        given = (self.tokens(name), self.network, self.params, None, initial, chunk_size)
        y, state, _ = fused(*given) if name == "triton" else chunked(*given, name)
        found = torch.autograd.grad(y, self.leaves, self.dy.to(y.dtype), materialize_grads=True)
        return [y.detach(), *(w.detach() for w in state.weights), *found]

    @torch.no_grad()
    def step(self, name: str, state: MemoryState, chunk_size: int) -> list[Tensor]:
        """Output and weights after one more token."""
        run = fused if name == "triton" else recurrent
        y, after, _ = run(self.tokens(name, 1), self.network, self.params, state, state, chunk_size)
        return [y, *after.weights]

    @torch.no_grad()
    def state(self, chunk_size: int) -> MemoryState:
        """The state after the first half of the tokens."""
        q, k, v, gates, *_ = self.tokens("torch", max(1, self.dy.shape[1] // 2))
        theta, eta, alpha = (g[..., 0] for g in gates[0])
        return neural_memory(q, k, v, theta, eta, alpha, self.network, self.params, None, chunk_size, "chunked")[1]


def measure(
    device: torch.device,
    dtype: torch.dtype,
    network: MemoryNetwork,
    head_dim: int,
    chunk_size: int,
    *,
    tokens: int | None = None,
    turns: int | None = None,
) -> Comparison:
    """Try every way that runs here against the PyTorch loop, time the right ones in turns, and keep the fastest.

    Args:
        device, dtype: of q, k and v. network, head_dim, chunk_size: of the memory.
        tokens: of each row, default `TOKENS`. turns: timed calls of each way, after one that is not counted, default
            `TURNS`.
    """
    turns = turns or TURNS
    problem = Problem(device, dtype, network, head_dim, tokens or TOKENS)
    fits, why = supported(device, dtype, network, head_dim, chunk_size)
    kernel, why_not = cpu_kernel(problem.wide == torch.float64, network.depth) if device.type == "cpu" else (False, "")
    names = ["torch", "compiled", *(["cpu"] if kernel else []), *(["triton"] if fits else [])]
    reading = _compare({n: partial(problem.whole, n, chunk_size) for n in names}, device, dtype, turns)
    if not fits:
        reading.append(Candidate("triton", None, 0.0, why))
    if device.type == "cpu" and not kernel:
        reading.append(Candidate("cpu", None, 0.0, why_not))
    state = problem.state(chunk_size)
    steps = ["recurrent", *(["triton"] if fits else [])]
    decoding = _compare({n: partial(problem.step, n, state, chunk_size) for n in steps}, device, dtype, turns)
    first, second = _fastest(reading), _fastest(decoding)
    best = Measured(first.name, second.name, _reason(reading), _reason(decoding))
    measured.add(measured.key(device, dtype, network, head_dim, chunk_size), best)
    return Comparison(reading, decoding, best)


def _compare(
    calls: Mapping[str, Callable[[], list[Tensor]]], device: torch.device, dtype: torch.dtype, turns: int
) -> list[Candidate]:
    """Each way against the first, which is the PyTorch code, and the median times of those that are right."""
    first, *_ = calls
    want = calls[first]()
    found = {first: Candidate(first, None, 0.0, "")}
    for name, call in calls.items():
        if name == first:
            continue
        try:
            apart = distance(call(), want)
        except Exception as error:  # a compiler or a kernel raises anything
            line = (str(error).strip().splitlines() or ["no message"])[-1]
            found[name] = Candidate(name, None, 0.0, f"{type(error).__name__}: {line}")
            continue
        wrong = "" if apart <= ALLOWED[dtype] else f"its results are {apart:.1e} apart, {ALLOWED[dtype]:g} is allowed"
        found[name] = Candidate(name, None, apart, wrong)
    taken = seconds({n: calls[n] for n, c in found.items() if not c.reason}, device, turns)
    return [c._replace(seconds=taken.get(n)) for n, c in found.items()]


def _fastest(candidates: list[Candidate]) -> Candidate:
    return min((c for c in candidates if c.seconds is not None), key=lambda c: c.seconds or 0.0)


def _reason(candidates: list[Candidate]) -> str:
    times = [f"{c.name} {1e3 * c.seconds:.3g} ms" for c in candidates if c.seconds is not None]
    return f"measured here: {', '.join(times)}"


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
