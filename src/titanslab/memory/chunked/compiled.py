"""The chunk loop with its functions through `torch.compile`: fewer and larger launches, the default on GPUs.

Compiling takes a minute or more, and again where shapes differ. At its first call a compiled function is compared with
the function as it is written, and timed beside it: what does not compile, is wrong or is slower runs as it is written,
and why is said once. `TITANS_COMPILE=0` leaves all of it, `TITANS_COMPILE=1` asks for it on CPUs too.
"""

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from titanslab.memory.chunked import loop as chunk_loop
from titanslab.memory.chunked.equations import AS_WRITTEN, Functions
from titanslab.memory.chunked.loop import block_size, kept_activations
from titanslab.memory.compare import distance, seconds

__all__ = ["backward", "block_size", "forward", "kept_activations", "wanted", "written"]
# largest relative distance of any result; products in TF32 are that far apart
ALLOWED = {torch.float32: 1e-3, torch.float64: 1e-9}
TURNS = 5
_log = logging.getLogger(__name__)


def wanted(device: torch.device) -> bool:
    """Whether the functions are compiled there."""
    return os.environ.get("TITANS_COMPILE", "1" if device.type == "cuda" else "0") == "1"


class Compiled:
    """A function, compiled, compared and timed at its first call; `why_not` where it runs as it is written since."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.compiled: Callable | None = None
        self.why_not = ""
        names = list(inspect.signature(function).parameters)
        self.out = names.index("out") if "out" in names else None  # what it writes into, in whole

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None and not self.why_not:
            return self._first(*arguments)
        return (self.compiled or self.function)(*arguments)

    def _first(self, *arguments: Any) -> Any:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return self.function(*arguments)  # neither compiled nor timed while a graph is recorded
        try:
            compiled = torch.compile(self.function)
            got = self._results(compiled(*arguments), arguments)
            want = self._results(self.function(*arguments), arguments)
            apart, allowed = distance(got, want), ALLOWED[want[0].dtype]
            if not apart <= allowed:
                self.why_not = f"its results were {apart:.1e} apart, {allowed:g} is allowed"
            else:
                ways = {"compiled": partial(compiled, *arguments), "written": partial(self.function, *arguments)}
                taken = {way: 1e6 * s for way, s in seconds(ways, want[0].device, TURNS).items()}
                if taken["compiled"] > taken["written"]:
                    self.why_not = f"it took {taken['compiled']:.0f} us, as it is written {taken['written']:.0f} us"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise anything
            cause = getattr(error, "inner_exception", error)  # what dynamo wraps
            self.why_not = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
        if self.why_not:
            _log.warning("torch.compile of %s is not taken: %s", self.function.__name__, self.why_not)
        else:
            self.compiled = compiled
        return self.function(*arguments)

    def _results(self, returned: Any, arguments: tuple) -> list[Tensor]:
        """Copies: compiled functions may give the same memory again."""
        into = [] if self.out is None else arguments[self.out]
        return [t.clone() for t in (*_tensors(returned), *into)]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)


FUNCTIONS = Functions(*map(Compiled, AS_WRITTEN))


def written() -> str:
    """Which functions of this process run as they are written, and why; nothing where none does or was called."""
    return "; ".join(f"{f.function.__name__}: {f.why_not}" for f in FUNCTIONS if isinstance(f, Compiled) and f.why_not)


def forward(*arguments: Any, **named: Any) -> tuple:
    """See `chunk_loop.forward`."""
    return chunk_loop.forward(*arguments, **named | {"functions": FUNCTIONS})


def backward(*arguments: Any, **named: Any) -> tuple:
    """See `chunk_loop.backward`."""
    return chunk_loop.backward(*arguments, **named | {"functions": FUNCTIONS})
