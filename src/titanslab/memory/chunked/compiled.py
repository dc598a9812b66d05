"""The chunk loop with its functions through `torch.compile`: fewer and larger launches, after a minute of compiling."""

from functools import partial

import torch

from titanslab.memory.chunked import loop
from titanslab.memory.chunked.equations import AS_WRITTEN, Functions
from titanslab.memory.chunked.loop import block_size, kept_activations, lane_group

__all__ = ["backward", "block_size", "forward", "kept_activations", "lane_group"]

FUNCTIONS = Functions(*map(torch.compile, AS_WRITTEN))  # type: ignore[arg-type]
forward = partial(loop.forward, functions=FUNCTIONS)
backward = partial(loop.backward, functions=FUNCTIONS)
