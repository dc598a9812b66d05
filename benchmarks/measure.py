"""Timing in turns, and memory: the two measurements every benchmark here is made of."""

import contextlib
import ctypes
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

# what a candidate that cannot run here raises; anything else ends the run
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError, ValueError, TypeError, AssertionError, MemoryError, ImportError,
)  # fmt: skip
with contextlib.suppress(ImportError):  # a kernel that does not fit the GPU
    from triton.errors import TritonError

    ERRORS = (*ERRORS, TritonError)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    candidates: Mapping[str, Callable[[], Any]],
    device: torch.device,
    repeats: int = 5,
    warmup: int = 1,
    progress: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    around: Callable[[str], contextlib.AbstractContextManager] | None = None,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each call, A B C A B C ..., so that a machine that slows down slows all of them down.

    Args:
        around: makes a context for a candidate's turn, entered and left outside its time.

    Returns:
        seconds by candidate, one per repeat; and, for those that failed, the error instead.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    failed: dict[str, str] = {}
    # what is alive by now needs no more looking at, and a collection may not fall into someone's turn
    gc.collect()
    gc.freeze()
    try:
        for turn in range(-warmup, repeats):
            for name, call in candidates.items():
                if name in failed:
                    continue
                if progress is not None:
                    progress(f"{'warm-up' if turn < 0 else f'turn {turn + 1}/{repeats}'}: {name}")
                gc.collect()
                try:
                    with around(name) if around is not None else contextlib.nullcontext():
                        synchronize(device)
                        start = clock()
                        call()
                        synchronize(device)
                        taken = clock() - start
                except ERRORS as error:
                    failed[name] = one_line(error)
                    continue
                if turn >= 0:
                    seconds[name].append(taken)
    finally:
        gc.unfreeze()
    return {name: s for name, s in seconds.items() if name not in failed}, failed


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and range of the raw repeats, which stay beside them."""
    ordered = sorted(seconds)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return {
        "median": statistics.median(ordered),
        "quartiles": [quartiles[0], quartiles[2]],
        "range": [ordered[0], ordered[-1]],
        "repeats": seconds,
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """How many times faster ours is, turn by turn: median and range."""
    turns = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(turns), "range": [min(turns), max(turns)]}


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status; None where there is no such file."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _reset_peak() -> bool:
    """Make the system forget the process's highest resident size; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _return_free_memory() -> None:
    """Give freed heap back, so that what an earlier call left free does not hide what the next one takes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Highest memory during the call, less what was in use before it.

    CPU: resident size of the process; meant for a fresh process. GPU: the allocator's own count.
    """
    if device.type == "cuda":
        gc.collect()
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return {"bytes": torch.cuda.max_memory_allocated(device) - before, "method": "cuda allocator"}
    _return_free_memory()
    resident = _status("VmRSS")
    if resident is not None and _reset_peak():
        call()
        peak = _status("VmHWM") or resident
        return {"bytes": peak - resident, "method": "resident size, peak reset before the call"}
    # elsewhere the highest size ever is all there is: right where this call is the largest so far
    unit = 1 if sys.platform == "darwin" else 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"bytes": peak - highest, "method": "ru_maxrss above its value before the call"}


def fold_allocations(changes: list[tuple[int, int]]) -> tuple[int, int]:
    """`(time, bytes)` of allocations and (negative) releases -> bytes still held at the end, and the peak."""
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return held, peak


def allocations(call: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Tensor memory of one call, from torch's allocator: what its result keeps alive, and the peak.

    `call` returns what shall stay alive (an output with its graph), so `held` is what waits for backward.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        synchronize(device)
        held = torch.cuda.memory_allocated(device) - before
        del kept
        return {"held": held, "peak": torch.cuda.max_memory_allocated(device) - before}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        kept = call()
    results = prof.profiler.kineto_results  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    del kept
    held, peak = fold_allocations(changes)
    return {"held": held, "peak": peak}
