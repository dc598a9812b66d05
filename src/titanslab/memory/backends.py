"""Which code runs a call of the memory, and why; chosen once a call, in this file alone.

`auto` goes token by token for a few tokens and in chunks for more. In chunks it takes the compiled kernel on a CPU with
a C++ compiler, and PyTorch operations elsewhere, unless `titans info --measure` has found something faster here.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from titanslab.memory import measured
from titanslab.memory.cpu.build import MAX_LAYERS, load
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Tokens
from titanslab.memory.state import MemoryState
from titanslab.memory.transforms import transformed

# calls of at most this many tokens go step by step (docs/log.md)
STEP_TOKENS = 2
# calls of at least this many tokens gain from the layer's own CPU pass
LAYER_TOKENS = 2
# shortest chunk with which the compiled CPU kernel forgets to the start
BASE_CHUNK = 9
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [getattr(torch.nn.modules.module, f"_global{name}") for name in _HOOKS]  # dicts that PyTorch keeps


class BackendChoice(NamedTuple):
    """The `name` of the backend that `auto` takes, and the `reason` in a few words."""

    name: str
    reason: str


class Way(NamedTuple):
    """The code that runs a call: a name of `BACKENDS`, for "chunked" the loop (`chunked.op.LOOPS`), and the reason."""

    backend: str
    loop: str
    reason: str


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    network: MemoryNetwork,
    head_dim: int,
    chunk_size: int,
    *,
    channelwise: bool = False,
    forget_to: str = "zero",
) -> BackendChoice:
    """The backend that `backend="auto"` means for such a call; `titans info` prints the same.

    Args:
        device, dtype, tokens: device and dtype of q, and the number of tokens in its rows.
        network, head_dim, chunk_size: shape of the memory, the width of its heads, and its chunk size.
        channelwise: alpha is a tuple, one decay per channel.
        forget_to: see `MemoryConfig`.
    """
    memory = network, head_dim, chunk_size
    way = choose(device, dtype, tokens, memory, channelwise=channelwise, forget_to=forget_to)
    return BackendChoice(way.backend, way.reason)


def choose(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    memory: tuple[MemoryNetwork, int, int],
    backend: str = "auto",
    *,
    channelwise: bool = False,
    forget_to: str = "zero",
) -> Way:
    """The way of one call; a `backend` asked for by name is taken as it is.

    `memory`: network, head_dim and chunk_size. Other arguments as in `choose_backend`.
    """
    if channelwise and backend in ("chunked", "triton"):
        raise ValueError(f"backend {backend!r} takes no channel-wise alpha; use 'recurrent', 'reference' or 'auto'")
    if transformed():
        if backend not in ("auto", "recurrent"):
            raise ValueError(
                f"backend {backend!r} does not run inside torch.func or forward-mode AD; use 'recurrent' or 'auto'"
            )
        return Way("recurrent" if backend == "auto" else backend, "", "torch.func goes token by token")
    few, to_start = tokens <= STEP_TOKENS, forget_to == "start"
    if backend == "chunked" or (backend == "auto" and not few and not channelwise):
        if to_start and device.type == "cpu" and (torch.compiler.is_compiling() or memory[2] < BASE_CHUNK):
            return Way("chunked", "torch", "the exact parallel form, PyTorch operations: it forgets to the start")
        if torch.compiler.is_compiling():  # the op chooses: a trace must not load kernels or read files
            return Way("chunked", "", "the exact parallel form")
        return _in_chunks(device, dtype, memory, named=backend == "chunked")
    if backend != "auto":
        return Way(backend, "", "asked for by name")
    if channelwise:
        return Way("recurrent", "", "channel-wise alpha is computed token by token")
    # the fused step has no backward
    if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
        found = measured.find(device, dtype, *memory)
        if found is not None and found.decoding == "triton":
            return Way("triton", "", f"few tokens: {found.why_decoding}")
    return Way("recurrent", "", "few tokens: steps cost less than a chunk")


def _in_chunks(device: torch.device, dtype: torch.dtype, memory: tuple[MemoryNetwork, int, int], named: bool) -> Way:
    """The way of many tokens: as measured here, else the compiled kernel on a CPU and PyTorch operations elsewhere."""
    found = measured.find(device, dtype, *memory)
    if found is not None and found.reading == "triton" and not named:
        return Way("triton", "", found.why_reading)
    if found is not None and found.reading != "triton":
        return Way("chunked", found.reading, found.why_reading)
    loop, reason = chunk_loop(device, dtype, memory[0].depth)
    return Way("chunked", loop, f"the exact parallel form, {reason}")


def chunk_loop(device: torch.device, dtype: torch.dtype, depth: int) -> tuple[str, str]:
    """The loop of "chunked" where nothing was measured, and why."""
    if device.type != "cpu":
        return "torch", f"PyTorch operations on {device.type}"
    fits, reason = cpu_kernel(dtype == torch.float64, depth)
    return ("cpu" if fits else "torch"), reason


@cache
def cpu_kernel(wide: bool, depth: int) -> tuple[bool, str]:
    """Whether the compiled CPU kernel runs a memory of that depth in float32 (`wide`: float64), and why or why not."""
    if depth > MAX_LAYERS:
        return False, f"the compiled kernel takes memories of depth {MAX_LAYERS} or less, got {depth}"
    library = load(torch.float64 if wide else torch.float32)
    return library.handle is not None, library.reason


def takes_step(tokens: Tokens, params: MemoryParams, state: MemoryState) -> bool:
    """Whether the compiled CPU step runs a call: one token, one gate per layer, outside autograd and tracing."""
    q = tokens.q
    if q.device.type != "cpu" or q.shape[1] != 1 or tokens.mask is not None or tokens.reset is not None:
        return False
    if type(q) is not Tensor or torch.compiler.is_compiling() or transformed() or len(state.weights) > MAX_LAYERS:
        return False
    if any(gate.shape[-1] != 1 for gate in tokens.gates[0]):
        return False
    if torch.is_grad_enabled():
        slow = (*params.weights, params.norm_weight, params.norm_bias)
        fast = (*state.weights, *state.momentum, *state.chunk_weights)
        gates = (gate for row in tokens.gates for gate in row)
        if any(t is not None and t.requires_grad for t in (q, tokens.k, tokens.v, *gates, *slow, *fast)):
            return False
    return load(q.dtype, "step").handle is not None


def takes_features(*tensors: Tensor) -> bool:
    """Whether the compiled passes of `cpu/features.py` run on these tensors: on a CPU, float32 or float64, untraced."""
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling() or transformed():
        return False  # torch.compile fuses PyTorch's own operations
    for t in tensors:
        # a fake or a wrapped tensor has no data to point at
        if type(t) not in (Tensor, nn.Parameter) or t.device.type != "cpu" or t.dtype != dtype:
            return False
    return load(dtype, "features").handle is not None


def is_bare(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a module is a `kind` that nothing wraps, so that its weight may be read without calling it.

    Adapters replace the module, hooks hang on it or on all modules, and accelerate replaces its `forward`.
    """
    if type(module) is not kind or "forward" in vars(module) or any(_GLOBAL_HOOKS):
        return False
    return not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether forward or backward hooks hang on the module itself."""
    return any(getattr(module, hook) for hook in _HOOKS)


def takes_layer(
    x: Tensor, projections: list[nn.Module], others: list[Tensor], conv_size: int, depth: int, backend: str
) -> bool:
    """Whether `layer_cpu.py` trains a layer on `x [B,T,hidden]`.

    It needs a CPU, float32 or float64, at least `LAYER_TOKENS` tokens, the compiled kernels, short convolutions, and
    projections that are bare `nn.Linear`: it would pass by a hook or an adapter around them. `others`, the parameters
    beside those, must have the dtype of x, because the kernels read memory as that.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or backend not in ("auto", "chunked"):
        return False
    if x.shape[0] == 0 or conv_size == 1 or x.shape[1] < max(LAYER_TOKENS, conv_size):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    if not all(is_bare(p) for p in projections):
        return False
    if not takes_features(x, *(p.weight for p in projections), *others):  # type: ignore[arg-type]
        return False
    return cpu_kernel(x.dtype == torch.float64, depth)[0]
