"""Checks of a layer's arguments, so that an error names the argument before any kernel reads memory."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from titanslab.memory.state import OTHER, MemoryState, NeuralMemoryState

if TYPE_CHECKING:
    from titanslab.memory.layer import NeuralMemory


def check_input(layer: "NeuralMemory", x: Tensor) -> None:
    """Raise a ValueError unless `x` is `[B,T,hidden_size]` with the layer's dtype and device, or autocast is on."""
    if not isinstance(x, Tensor):
        got = type(x).__name__
        raise ValueError(f"x must be a tensor [B, T, {layer.hidden_size}], got {got}; torch.as_tensor makes one")
    if torch.jit.is_tracing():
        raise ValueError("torch.jit.trace cannot record a NeuralMemory; use torch.export or torch.compile")
    if x.dim() != 3 or x.shape[2] != layer.hidden_size:
        fix = "project it, or make the layer with another hidden_size"
        if x.dim() != 3:
            fix = "one row is x.unsqueeze(0)" if x.dim() == 2 else "reshape it"
        raise ValueError(f"x must have shape [B, T, {layer.hidden_size}] (hidden_size), got {list(x.shape)}; {fix}")
    if layer.memory_weights[0].is_meta and not x.is_meta:
        raise ValueError(
            "the weights of a NeuralMemory are offloaded, and it reads them without calling the modules that hold "
            "them, so that offloading is not supported: place whole blocks on a device, such as device_map={'': 0}"
        )
    if x.device != layer.o_norm.device:
        raise ValueError(f"x is on {x.device}, the layer on {layer.o_norm.device}; move one of them")
    if type(layer.q_proj) is not nn.Linear or x.dtype == (dtype := layer.q_proj.weight.dtype):
        return  # what wraps a projection may cast
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, the layer {dtype}; embed whole numbers, or x.to({dtype}) if they are values")
    narrow = x.dtype in (torch.float32, torch.bfloat16, torch.float16)  # autocast casts no other dtype
    if not narrow or not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x is {x.dtype}, the layer {dtype}; cast one of them, such as x.to({dtype})")


def as_flags(name: str, flags: Tensor | None, x: Tensor) -> Tensor | None:
    """A mask or a reset as bool `[B,T]`; whole numbers are taken too, as Hugging Face's masks have them."""
    if flags is None:
        return None
    if not isinstance(flags, Tensor):
        raise ValueError(f"{name} must be a bool tensor {list(x.shape[:2])}, got {type(flags).__name__}")
    if flags.dtype == torch.bool and flags.shape == x.shape[:2]:
        return flags
    if flags.shape != x.shape[:2]:
        fix = f"; one flag a row is {name}[:, None] where T is 1" if flags.shape == x.shape[:1] else ""
        raise ValueError(f"{name} must have shape {list(x.shape[:2])} like the tokens, got {list(flags.shape)}{fix}")
    if flags.is_floating_point() or flags.is_complex():
        raise ValueError(
            f"{name} must be bool or whole numbers, of which 0 is False, got {flags.dtype}; use {name}.bool()"
        )
    return flags.bool()


def check_lengths(lengths: Tensor | None, x: Tensor) -> None:
    """Raise a ValueError unless `lengths` is int64 `[B]`, and on a CPU for a length that no row of x has."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor) or lengths.shape != x.shape[:1] or lengths.dtype != torch.int64:
        got = f"{list(lengths.shape)} of {lengths.dtype}" if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(f"lengths must be int64 [{x.shape[0]}], got {got}; give torch.tensor([...]), one number a row")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and lengths.numel():
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > x.shape[1]:
            raise ValueError(f"lengths must be from 0 to {x.shape[1]}, the tokens of x, got {least}..{most}")


def check_state(
    layer: "NeuralMemory", name: str, state: NeuralMemoryState | None, x: Tensor, rows: tuple[int, ...]
) -> None:
    """Raise a ValueError if the argument `name` is no state of such a layer, for a number of rows among `rows`."""
    if state is None:
        return
    if not isinstance(state, NeuralMemoryState):
        got = type(state).__name__
        fixes = {
            "tuple": "; forward returns (y, state)",
            "dict": "; use NeuralMemoryState.from_tensors",
            "MemoryState": "; give the whole state, not its .memory",
        }
        raise ValueError(
            f"{name} must be a NeuralMemoryState, which forward, update and initial_state give, got {got}"
            f"{fixes.get(got, '')}"
        )
    if not isinstance(state.memory, MemoryState) or not isinstance(state.conv, dict):
        got = f"{type(state.memory).__name__} and {type(state.conv).__name__}"
        raise ValueError(f"{name} must hold a MemoryState and a dict of tensors, as a layer gives them, got {got}")
    batch, width = state.batch_size, layer.num_heads * layer.head_dim
    if batch not in rows:
        fix = f"{name}.index_select takes rows, initial_state({x.shape[0]}) starts new ones"
        raise ValueError(f"{name} holds {batch} rows, x has {x.shape[0]}; give each row its own state: {fix}")
    wanted = (batch, layer.conv_size - 1, width)
    for tail in ("q", "k", "v", "read"):
        found = state.conv.get(tail)
        if found is None:
            raise ValueError(f"{name}.conv has no {tail!r}; a state of this layer has q, k, v and read")
        if found.shape != wanted or not found.is_floating_point():
            raise ValueError(
                f"{name}.conv[{tail!r}] must have shape {list(wanted)} and a floating dtype, got {list(found.shape)} "
                f"of {found.dtype}{OTHER}"
            )
        if found.device != x.device:
            raise ValueError(f"{name}.conv[{tail!r}] is on {found.device}, x on {x.device}; use {name}.to(device)")
