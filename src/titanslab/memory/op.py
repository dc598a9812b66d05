"""`neural_memory`: validate, choose a backend, call it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.chunked.op import chunked, implementation
from titanslab.memory.gpu import fused, take_fused, tried
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.recurrent import recurrent
from titanslab.memory.reference import Gates, reference
from titanslab.memory.state import MemoryState

# calls of so few tokens go step by step (docs/log.md)
STEP_TOKENS = 2
BACKENDS = ("reference", "recurrent", "chunked", "triton")


class BackendChoice(NamedTuple):
    """The backend `auto` takes, and why."""

    name: str
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
) -> BackendChoice:
    """What `backend="auto"` means for a call; `titans info` prints the same.

    On a GPU the first call of a shape of memory may try the fused kernels beside the others, in a process of its own.
    """
    if channelwise:
        return BackendChoice("recurrent", "channel-wise alpha is computed token by token")
    few = tokens <= STEP_TOKENS
    fused, why = False, ""
    if device.type == "cuda" and (not few or (tokens == 1 and not torch.is_grad_enabled())):
        clipped = network.grad_clip is not None
        form = (network.depth, network.expansion, network.residual, network.norm, clipped, head_dim, chunk_size)
        fused = take_fused(device, dtype, few, *form)
        why = "" if torch.compiler.is_compiling() else f"; {tried(device, dtype, few, *form)[1]}"
    if few:
        return BackendChoice(
            "triton" if fused else "recurrent", f"{tokens} token(s): steps cost less than a chunk{why}"
        )
    if fused:
        return BackendChoice("triton", f"the exact parallel form, fused kernels{why}")
    if torch.compiler.is_compiling():  # the reason would load the kernel inside the traced graph
        return BackendChoice("chunked", "the exact parallel form")
    _, how = implementation(device, torch.float64 if dtype == torch.float64 else torch.float32, network.depth)
    return BackendChoice("chunked", f"the exact parallel form, {how}{why}")


def _check(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, q is on {like.device}; move one of them")


def _layer_gates(
    gates: dict[str, Tensor | tuple[Tensor, ...]],
    q: Tensor,
    widths: list[tuple[int, int]],
    dtype: torch.dtype,
) -> Gates:
    """Every gate as one `[B,T,H,1]` (or `[B,T,H,d_in]`) tensor per layer."""
    depth, outer = len(widths), tuple(q.shape[:3])
    by_layer: dict[str, list[Tensor]] = {}
    for name, gate in gates.items():
        if isinstance(gate, (tuple, list)):
            if name != "alpha" or len(gate) != depth:
                raise ValueError(
                    f"{name} may be a tensor; only alpha may be a tuple (channel-wise, one [B,T,H,d_in] per layer, "
                    f"{depth} here), got a {type(gate).__name__} of {len(gate)}"
                )
            for g, (width, _) in zip(gate, widths, strict=True):
                _check("alpha", g, (*outer, width), q)
            by_layer[name] = [g.to(dtype) for g in gate]
        elif tuple(gate.shape) == outer:
            _check(name, gate, outer, q)
            by_layer[name] = [gate.to(dtype)[..., None]] * depth
        else:
            if gate.dim() == 4 and gate.shape[3] == 1:
                gate = gate.expand(-1, -1, -1, depth)
            if tuple(gate.shape) != (*outer, depth):
                raise ValueError(
                    f"{name} must have shape {list(outer)} or {[*outer, depth]} (per layer), got {list(gate.shape)}"
                )
            _check(name, gate, (*outer, depth), q)
            by_layer[name] = [gate.to(dtype)[..., layer, None] for layer in range(depth)]
    rows = list(zip(by_layer["theta"], by_layer["eta"], by_layer["alpha"], strict=True))
    same = all(all(a is b for a, b in zip(row, rows[0], strict=True)) for row in rows)
    return [rows[0]] * depth if same else rows


def _check_state(name: str, state: MemoryState, q: Tensor, widths: list[tuple[int, int]], batches: set[int]) -> None:
    if state.batch_size not in batches:
        raise ValueError(f"{name} holds {state.batch_size} rows, q has a batch of {q.shape[0]}")
    for part in ("weights", "momentum", "chunk_weights"):
        tensors = getattr(state, part)
        if len(tensors) != len(widths):
            raise ValueError(f"{name}.{part} must hold {len(widths)} tensors, one per layer, got {len(tensors)}")
        for layer, (tensor, width) in enumerate(zip(tensors, widths, strict=True)):
            _check(f"{name}.{part}[{layer}]", tensor, (state.batch_size, q.shape[2], *width), q)


def _in_dtype(state: MemoryState, dtype: torch.dtype) -> MemoryState:
    """The state itself where it has the dtype already."""
    parts = (*state.weights, *state.momentum, *state.chunk_weights)
    return state if all(t.dtype == dtype for t in parts) else state.map_weights(lambda t: t.to(dtype))


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor,
    alpha: Tensor | tuple[Tensor, ...],
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState | None = None,
    chunk_size: int = 16,
    backend: str = "auto",
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    initial: MemoryState | None = None,
    return_loss: bool = False,
    op: Callable[..., tuple] | None = None,
) -> tuple:
    """Write every token into the memory and read it back right after: `y_t = f(q_t; M_t)` (paper eqs. 9-15).

    `u_t = grad_W ||f(k_t; W) - v_t||^2` at the weights W of the chunk's start, `S_t = eta_t S_{t-1} - theta_t u_t`,
    `M_t = (1 - alpha_t) M_{t-1} + S_t`. `chunk_size` is part of the function; 1 is the paper's online rule.

    Args:
        q, k, v: `[B,T,H,D]`.
        theta, eta, alpha: `[B,T,H]` or per memory layer `[B,T,H,L]`, already activated; alpha may also be a tuple of
            `[B,T,H,d_in]`, one per layer (channel-wise forgetting).
        network: shape of the memory. params: its slow parameters, heads first.
        state: what was read before; None starts at `initial`.
        backend: "auto", or one of "reference", "recurrent", "chunked", "triton", which then runs or raises.
        mask: bool `[B,T]`, True for real tokens. Padding writes nothing, forgets nothing, moves no chunk boundary.
        reset: bool `[B,T]`, True for the first token of a document: the row goes back to `initial`.
        initial: where documents start, one row or B; default M_0 without momentum.
        return_loss: also return the inner loss before each write.
        op: for "chunked", what runs its loop; see `chunked`.

    Returns:
        y `[B,T,H,D]` (0 at padding) in q's dtype, the new state (float32 or float64), and on request the detached
        loss `[B,T,H]`.

    Raises:
        ValueError: a shape, device or name that does not fit. RuntimeError: a named backend that cannot run here.
    """
    if q.dim() != 4:
        raise ValueError(f"q must have shape [B, T, H, D], got {list(q.shape)}")
    batch, tokens, heads, head_dim = q.shape
    for name, x in (("k", k), ("v", v)):
        _check(name, x, tuple(q.shape), q)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be an integer of at least 1, got {chunk_size!r}")
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"backend must be one of {', '.join((*BACKENDS, 'auto'))}, got {backend!r}")
    widths = network.widths(head_dim)
    if len(params.weights) != network.depth:
        raise ValueError(f"params.weights must hold {network.depth} tensors (network.depth), got {len(params.weights)}")
    for layer, (weight, width) in enumerate(zip(params.weights, widths, strict=True)):
        _check(f"params.weights[{layer}]", weight, (heads, *width), q)
    for name, affine in (("norm_weight", params.norm_weight), ("norm_bias", params.norm_bias)):
        if (affine is not None) != network.norm:
            raise ValueError(
                f"params.{name} must be {'[H, D]' if network.norm else 'None'} where network.norm is {network.norm}"
            )
        if affine is not None:
            _check(f"params.{name}", affine, (heads, head_dim), q)
    for name, flags in (("mask", mask), ("reset", reset)):
        if flags is not None:
            _check(name, flags, (batch, tokens), q)
            if flags.dtype != torch.bool:
                raise ValueError(f"{name} must be bool, got {flags.dtype}")
    if state is not None:
        _check_state("state", state, q, widths, {batch})
    if initial is not None:
        _check_state("initial", initial, q, widths, {1, batch})

    out_dtype = q.dtype
    dtype = torch.float64 if out_dtype == torch.float64 else torch.float32
    given = (q, k, v)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    params = MemoryParams(
        tuple(w.to(dtype) for w in params.weights),
        None if params.norm_weight is None else params.norm_weight.to(dtype),
        None if params.norm_bias is None else params.norm_bias.to(dtype),
    )
    gates = _layer_gates({"theta": theta, "eta": eta, "alpha": alpha}, q, widths, dtype)
    channelwise = isinstance(alpha, (tuple, list))
    state = None if state is None else _in_dtype(state, dtype)
    name = backend
    if backend == "auto":
        name = choose_backend(q.device, out_dtype, tokens, network, head_dim, chunk_size, channelwise=channelwise).name
    if channelwise and name in ("chunked", "triton"):
        raise ValueError(f"backend {name!r} takes no channel-wise alpha; use 'recurrent', 'reference' or 'auto'")
    if initial is not None:
        initial = _in_dtype(initial, dtype)
    elif name == "recurrent" and state is not None and reset is None:
        initial = state  # not read: no document begins
    else:
        initial = MemoryState.initial(params, 1)
    if tokens == 0 or batch == 0:
        start = initial.at_boundary().expand(batch) if state is None else state
        y, state, loss = torch.zeros_like(q), start, q.new_zeros(batch, tokens, heads)
    elif name == "chunked":
        y, state, loss = chunked(q, k, v, gates, network, params, state, initial, chunk_size, mask, reset, op)
    elif name == "triton":
        y, state, loss = fused(*given, gates, network, params, state, initial, chunk_size, mask, reset)
    else:
        loop = reference if name == "reference" else recurrent
        start = initial.at_boundary().expand(batch) if state is None else state
        y, state, loss = loop(q, k, v, gates, network, params, start, initial, chunk_size, mask, reset)
    result = (y.to(out_dtype), state)
    return (*result, loss.detach()) if return_loss else result
