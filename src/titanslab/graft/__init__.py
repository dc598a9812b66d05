"""A neural memory in a pretrained decoder of Hugging Face: `titanslab.graft(model, GraftConfig(...))`.

The room has the name of its main function, so the module itself can be called.
"""

import sys
from types import ModuleType
from typing import Any

from titanslab.graft.attach import graft, ungraft
from titanslab.graft.cache import GraftCache
from titanslab.graft.config import GraftConfig
from titanslab.graft.handle import Graft, graft_of
from titanslab.graft.load import load_graft, load_memories, save_base

__all__ = [
    "Graft",
    "GraftCache",
    "GraftConfig",
    "graft",
    "graft_of",
    "load_graft",
    "load_memories",
    "save_base",
    "ungraft",
]


class _Room(ModuleType):
    """The module, which passes a call on to the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return graft(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
