"""Correctness of the fused kernels on a few shapes, in one process: outputs, end state and gradients.

    python -m benchmarks.kernels                                      all shapes on a GPU
    python -m benchmarks.kernels --shapes bf16-16 step --seconds 60   two of them, the second if it begins in time
    TRITON_INTERPRET=1 python -m benchmarks.kernels --device cpu --tiny --shapes bf16-16     in the interpreter

Each shape is compared with the chunked form in float64 on the same device, which the shape `portable` compares with the
token loop. A distance is relative, by the norm of a tensor; the limits are those of `titans info --measure`. The JSON
also has the distance of the chunked form in the dtype of the shape, whether a second call gives the same bits, and the
seconds of the first call, which compiles the kernels, and of the second.

The JSON is written after each shape. The exit code is 0 if all shapes are right, 2 if one is wrong that the other GPU
benchmarks time (`TIMED`), and 1 if another one is wrong.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import one_line, synchronize
from benchmarks.output import new_report
from titanslab.experiments.report import Report
from titanslab.memory import MemoryNetwork, MemoryParams, MemoryState, neural_memory
from titanslab.memory.measure import ALLOWED, distance


@dataclass(frozen=True)
class Shape:
    """A memory and a batch. `ragged`: with padding, resets, and a state whose chunk has begun before the call.

    The defaults are those of the model of 340M parameters, so that later benchmarks find its kernels compiled.
    """

    chunk: int = 16
    dtype: str = "bfloat16"
    head_dim: int = 64
    heads: int = 16
    batch: int = 2
    tokens: int = 1024
    depth: int = 2
    expansion: int = 4
    ragged: bool = False
    grad_clip: float | None = None
    backend: str = "triton"

    def tiny(self) -> "Shape":
        """The same with small sizes, for Triton's interpreter."""
        small = {"head_dim": 16, "heads": 1, "batch": 1, "expansion": 2}
        return replace(self, **small, tokens=min(self.tokens, self.chunk + 1))


SHAPES = {
    "portable": Shape(dtype="float64", heads=2, tokens=40, ragged=True, backend="chunked"),
    "bf16-16": Shape(),
    "bf16-64": Shape(chunk=64),
    "float32-16": Shape(dtype="float32"),
    "step": Shape(tokens=20, ragged=True),
    "bf16-48": Shape(head_dim=48),
    "float32-prefix": Shape(dtype="float32", batch=1, tokens=128),
    "bf16-ragged": Shape(ragged=True),
    "float32-ragged": Shape(dtype="float32", ragged=True, grad_clip=0.5),
    "float32-64": Shape(chunk=64, dtype="float32"),
    "bf16-linear": Shape(depth=1),
    "bf16-wide": Shape(chunk=64, head_dim=128),
}
# Shapes of the memories that memory_op, train_step and decode time.
TIMED = ("bf16-16", "bf16-64", "float32-16", "step", "bf16-48", "float32-prefix")


class Problem:
    """The tensors of a shape, in float64. q, k and v are rounded to the shape's dtype, so all ways read one input."""

    def __init__(self, shape: Shape, device: torch.device, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(device)

        s = self.shape = shape
        self.network = MemoryNetwork(s.depth, s.expansion, grad_clip=s.grad_clip)
        tokens, gates = (s.batch, s.tokens, s.heads, s.head_dim), (s.batch, s.tokens, s.heads, s.depth)
        dtype = getattr(torch, s.dtype)
        scales = {"q": s.head_dim**-0.5, "k": s.head_dim**-0.5, "v": 1.0}
        self.inputs = {n: (normal(*tokens) * scale).to(dtype).double() for n, scale in scales.items()}
        eta = torch.sigmoid(normal(*gates))
        self.gates = {
            "theta": 0.05 * torch.sigmoid(normal(*gates)) * (1 - eta),
            "eta": eta,
            "alpha": torch.sigmoid(normal(*gates) - 5),
        }

        def weights(name: str, *rows: int, gain: float = 1.0) -> dict[str, Tensor]:
            widths = self.network.widths(s.head_dim)
            return {f"{name}{i}": gain * normal(*rows, s.heads, *w) * w[0] ** -0.5 for i, w in enumerate(widths)}

        norm = {"norm_weight": 1 + 0.1 * normal(s.heads, s.head_dim), "norm_bias": 0.1 * normal(s.heads, s.head_dim)}
        self.slow = {**weights("weight"), **norm}
        self.state: dict[str, Tensor] = {}
        self.offset = self.mask = self.reset = None
        if s.ragged:
            self.state = {
                **weights("state_weight", s.batch),
                **weights("state_momentum", s.batch, gain=0.1),
                **weights("state_chunk_weight", s.batch),
            }
            self.offset = torch.randint(0, s.chunk, (s.batch,), generator=generator).to(device)
            self.mask = (torch.rand(s.batch, s.tokens, generator=generator) > 0.2).to(device)
            self.reset = (torch.rand(s.batch, s.tokens, generator=generator) > 0.95).to(device)
        self.weight_of_y = normal(*tokens)

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """New leaves: q, k and v in `dtype`, the others in float32, or in float64 for float64."""
        wide = torch.promote_types(dtype, torch.float32)
        found = {n: t.to(dtype, copy=True) for n, t in self.inputs.items()}
        found |= {n: t.to(wide, copy=True) for n, t in (self.gates | self.slow | self.state).items()}
        return {n: t.requires_grad_() for n, t in found.items()}

    def call(self, leaves: dict[str, Tensor], backend: str, part: slice, state: MemoryState | None) -> tuple:
        """Output, state and inner loss of the tokens in `part`."""
        names = ("q", "k", "v", "theta", "eta", "alpha")
        mask, reset = (None if t is None else t[:, part] for t in (self.mask, self.reset))
        params = MemoryParams(self._layers(leaves, "weight"), leaves["norm_weight"], leaves["norm_bias"])
        rest = {"mask": mask, "reset": reset, "return_loss": True}
        tokens = (leaves[n][:, part] for n in names)
        return neural_memory(*tokens, self.network, params, state, self.shape.chunk, backend, **rest)

    def _layers(self, leaves: dict[str, Tensor], name: str) -> tuple[Tensor, ...]:
        return tuple(leaves[f"{name}{i}"] for i in range(self.shape.depth))

    def start(self, leaves: dict[str, Tensor]) -> MemoryState | None:
        """The state before the first token; None where the memory is new."""
        if self.offset is None:
            return None
        names = ("state_weight", "state_momentum", "state_chunk_weight")
        return MemoryState(*(self._layers(leaves, n) for n in names), self.offset)

    def whole(self, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Outputs, end state and gradients of one call with all tokens, by name."""
        leaves = self.leaves(dtype)
        y, state, loss = self.call(leaves, backend, slice(None), self.start(leaves))
        found = {"y": y, "loss": loss} | {n: t for n, t in state.tensors().items() if n != "offset"}
        total = (y.double() * self.weight_of_y).sum()
        total = total + sum(t.double().square().sum() for n, t in found.items() if n not in ("y", "loss"))
        gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        found |= {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}
        return {n: t.detach() for n, t in found.items()}

    @torch.no_grad()
    def steps(self, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Outputs and end state of one call a token."""
        leaves = self.leaves(dtype)
        state, outputs, losses = self.start(leaves), [], []
        for token in range(self.shape.tokens):
            y, state, loss = self.call(leaves, backend, slice(token, token + 1), state)
            outputs.append(y)
            losses.append(loss)
        ends = {n: t for n, t in state.tensors().items() if n != "offset"}
        return {"y": torch.cat(outputs, 1), "loss": torch.cat(losses, 1)} | ends


def check(name: str, shape: Shape, device: torch.device, seed: int) -> dict[str, Any]:
    """Distances of one shape, by tensor, and whether they are within the limit of its dtype."""
    problem, dtype = Problem(shape, device, seed), getattr(torch, shape.dtype)
    run = problem.steps if name == "step" else problem.whole
    truth = run("reference" if dtype == torch.float64 else "chunked", torch.float64)

    def timed(call: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], float]:
        synchronize(device)
        start = time.perf_counter()
        found = call()
        synchronize(device)
        return found, time.perf_counter() - start

    def apart(found: dict[str, Tensor]) -> dict[str, float]:
        return {n: distance([found[n]], [want]) for n, want in truth.items()}

    first, compiling = timed(lambda: run(shape.backend, dtype))
    second, seconds = timed(lambda: run(shape.backend, dtype))
    distances, limit = apart(first), ALLOWED[dtype]
    worst = max(distances, key=lambda n: distances[n])
    if not math.isfinite(distances[worst]):
        return {"right": False, "error": f"{worst} is not finite"}
    repeatable = all(torch.equal(first[n], second[n]) for n in first)
    return {
        "right": distances[worst] <= limit and repeatable,
        "distance": distances[worst],
        "worst": worst,
        "limit": limit,
        "portable_distance": max(apart(run("chunked", dtype)).values()),
        "same_bits_twice": repeatable,
        "distances": distances,
        "first_call_seconds": compiling,
        "second_call_seconds": seconds,
    }


def line(name: str, found: dict[str, Any]) -> str:
    """The result of a shape in one line."""
    if "error" in found:
        return f"{name:15} WRONG  {found['error']}"
    verdict = "right" if found["right"] else "WRONG"
    again = "" if found["same_bits_twice"] else ", a second call gives other bits"
    return (
        f"{name:15} {verdict}  {found['distance']:.1e} apart at most ({found['worst']}), {found['limit']:g} allowed; "
        f"portable {found['portable_distance']:.1e}; first call {found['first_call_seconds']:.1f} s, "
        f"second {1e3 * found['second_call_seconds']:.1f} ms{again}"
    )


def check_all(names: list[str], arguments: argparse.Namespace, report: Report) -> dict[str, bool]:
    """Check the shapes in order, and write the report after each; return whether each is right."""
    device, right = torch.device(arguments.device), {}
    for name in names:
        if time.perf_counter() - report.started > arguments.seconds:
            report.missing(name, f"not begun within {arguments.seconds:.0f} s (--seconds)")
            continue
        shape = SHAPES[name].tiny() if arguments.tiny else SHAPES[name]
        result: dict[str, Any] = {"name": name, "shape": asdict(shape)}
        try:
            result |= check(name, shape, device, arguments.seed)
        except Exception as error:  # a compiler or a kernel raises anything
            result |= {"right": False, "error": one_line(error)}
        right[name] = result["right"]
        report.add(result)
        print(line(name, result), flush=True)
        try:
            synchronize(device)
        except RuntimeError as error:  # after a fault of a kernel the process cannot use the GPU any more
            for later in names[names.index(name) + 1 :]:
                report.missing(later, f"the GPU is lost to this process after {name}: {one_line(error)}")
            break
    return right


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all, in this order")
    p.add_argument("--device", default="cuda")
    p.add_argument("--tiny", action="store_true", help="use small sizes, for Triton's interpreter")
    p.add_argument("--seconds", type=float, default=float("inf"), help="begin no shape after this many seconds")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, help="JSON file (default: a new one in benchmarks/results)")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    warnings.simplefilter("ignore")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU; --device cpu with TRITON_INTERPRET=1 runs the kernels in the interpreter")
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    report = new_report("kernels", arguments.seed, device, options, arguments.out)
    right = check_all(arguments.shapes, arguments, report)
    report.finish()
    wrong = [name for name, fine in right.items() if not fine]
    return 2 if set(wrong) & set(TIMED) else int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
