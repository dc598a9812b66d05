"""The two measurements of all benchmarks: time of several candidates in turns, and memory of one call."""

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

# Errors of a candidate that cannot run here. Any other error ends the run.
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError, ValueError, TypeError, AssertionError, MemoryError, ImportError,
)  # fmt: skip
with contextlib.suppress(ImportError):  # raised for a kernel that does not fit the GPU
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
    keep: Callable[[dict[str, list[float]], dict[str, str]], None] | None = None,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each call in the order A B C A B C ..., so that a slow phase of the machine affects all candidates.

    Args:
        candidates: the calls, by name.
        device: device of the calls; a GPU is synchronised before and after each.
        repeats: number of timed turns.
        warmup: number of calls of each candidate right before its first timed one, not timed.
        progress: called with a line of text before each call.
        clock: returns the time in seconds.
        around: makes a context for a candidate's turn; it is entered and left outside the timed part.
        keep: called with the results so far after each candidate's first timed call and after each turn, outside the
            timed part. Every candidate in them has the same number of repeats.

    Returns:
        Seconds of each repeat, by candidate; and the error of each candidate that failed, by candidate.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    failed: dict[str, str] = {}
    progress, keep = progress or _ignore, keep or _ignore

    def complete() -> dict[str, list[float]]:
        return {name: s for name, s in seconds.items() if s and name not in failed}

    # frozen objects are skipped by later collections, and no collection takes place inside a turn
    gc.collect()
    gc.freeze()
    try:
        for turn in range(repeats):
            for name, call in candidates.items():
                if name in failed:
                    continue
                gc.collect()
                try:
                    with around(name) if around is not None else contextlib.nullcontext():
                        for _ in range(0 if turn else warmup):
                            progress(f"warm-up: {name}")
                            call()
                            gc.collect()
                        progress(f"turn {turn + 1}/{repeats}: {name}")
                        synchronize(device)
                        start = clock()
                        call()
                        synchronize(device)
                        taken = clock() - start
                except ERRORS as error:
                    failed[name] = one_line(error)
                    continue
                seconds[name].append(taken)
                if turn == 0:
                    keep(complete(), failed)
            keep(complete(), failed)
    finally:
        gc.unfreeze()
    return complete(), failed


def _ignore(*_: Any) -> None:
    pass


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and range of the repeats, and the repeats themselves."""
    ordered = sorted(seconds)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return {
        "median": statistics.median(ordered),
        "quartiles": [quartiles[0], quartiles[2]],
        "range": [ordered[0], ordered[-1]],
        "repeats": seconds,
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Ratio of their time to ours in each turn: median and range."""
    turns = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(turns), "range": [min(turns), max(turns)]}


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status, or None without such a file."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _reset_peak() -> bool:
    """Reset the process's peak resident size; False if the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _return_free_memory() -> None:
    """Return the free heap to the system, so that the next call's memory shows in the resident size."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Peak memory during the call minus the memory in use before it.

    On a CPU it is the resident size of the process, which should be fresh. On a GPU it is the allocator's count.
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
    """From `(time, bytes)` of allocations, and of releases with negative bytes: bytes held at the end, and the peak."""
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return held, peak


def allocations(call: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Tensor memory of one call by torch's allocator: bytes `held` by its result, and the peak.

    `call` returns an output with its graph, so `held` are the bytes that forward keeps for backward.
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
