"""Numbers below 1e-38 count as 0 while a CPU computes: it takes far longer for one than for another.

Attention makes many of them, since tokens that it does not look at get weights of 1e-40. The setting belongs to a
thread. Python itself computes in the main one, where `float("1e-310") > 0` should hold, so that the setting is on there
for a time alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_inside = 0


@contextmanager
def as_zero() -> Iterator[None]:
    """Within it, this thread takes numbers below 1e-38 for 0; and so do threads that start within it."""
    global _inside
    import torch

    _inside += 1
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        _inside -= 1
        if not _inside:
            torch.set_flush_denormal(False)


def start_threads() -> None:
    """Start the threads of torch, if they do not run yet; they take numbers below 1e-38 for 0 from then on."""
    import torch

    with as_zero():
        torch.zeros(1 << 20).add_(1.0)
