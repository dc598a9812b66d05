"""What the memory does at each byte of a passage: theta, eta, alpha and its inner loss."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from titanslab.memory import NeuralMemory


@torch.inference_mode()
def memory_stats(model: Any, input_ids: Tensor) -> list[dict[str, Tensor]]:
    """Per block: `theta eta alpha loss`, each `[T]`, means over heads and memory layers, for one row `[1, T]`."""
    memories = [module for module in model.modules() if isinstance(module, NeuralMemory)]
    calls: dict[int, tuple[tuple, dict[str, Any]]] = {}

    def remember(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        calls[id(module)] = (args, kwargs)

    with ExitStack() as stack:
        for memory in memories:
            handle = memory.register_forward_pre_hook(remember, with_kwargs=True)
            stack.callback(handle.remove)
        model(input_ids=input_ids, use_cache=False)
    found = []
    for memory in memories:
        args, kwargs = calls[id(memory)]
        *_, stats = memory(*args, **kwargs, return_stats=True)
        found.append({name: value[0].flatten(1).mean(1).float() for name, value in stats.items()})
    return found
