"""The chunk loop with its functions through `torch.compile`, `TITANS_COMPILE=1`: fewer and larger launches.

Compiling takes a minute or more, and again where shapes differ. What does not compile runs as it is written, and the
reason is said once.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from titanslab.memory import chunk_loop
from titanslab.memory.chunk import AS_WRITTEN, Functions
from titanslab.memory.chunk_loop import block_size, kept_activations

__all__ = ["backward", "block_size", "failures", "forward", "kept_activations", "wanted"]
_log = logging.getLogger(__name__)


def wanted() -> bool:
    """Whether `TITANS_COMPILE` asks for it."""
    return os.environ.get("TITANS_COMPILE", "0") == "1"


class Compiled:
    """A function, compiled at its first call; as it is written once that has failed."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.compiled: Callable | None = None
        self.failed = ""

    def __call__(self, *arguments: Any) -> Any:
        if self.failed:
            return self.function(*arguments)
        if self.compiled is None:
            self.compiled = torch.compile(self.function)
        try:
            return self.compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise anything
            # what it wrote into is written in whole again
            result = self.function(*arguments)
            cause = getattr(error, "inner_exception", error)  # what dynamo wraps
            self.failed = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
            _log.warning("torch.compile failed on %s, which runs uncompiled: %s", self.function.__name__, self.failed)
            return result


FUNCTIONS = Functions(*map(Compiled, AS_WRITTEN))


def failures() -> str:
    """Why functions of this process did not compile; nothing where they did, or have not been called."""
    return "; ".join(sorted({f.failed for f in FUNCTIONS if isinstance(f, Compiled) and f.failed}))


def forward(*arguments: Any, **named: Any) -> tuple:
    """See `chunk_loop.forward`."""
    return chunk_loop.forward(*arguments, **named | {"functions": FUNCTIONS})


def backward(*arguments: Any, **named: Any) -> tuple:
    """See `chunk_loop.backward`."""
    return chunk_loop.backward(*arguments, **named | {"functions": FUNCTIONS})
