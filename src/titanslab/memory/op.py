"""`neural_memory`: validate, choose a backend, call it."""

import torch
from torch import Tensor

from titanslab.memory.backends import choose, takes_step
from titanslab.memory.chunked.op import chunked
from titanslab.memory.config import BACKENDS, FORGET_TO
from titanslab.memory.cpu.step import step
from titanslab.memory.gpu import fused
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.recurrent import recurrent
from titanslab.memory.reference import Gates, Tokens, reference
from titanslab.memory.rows import fitting_chunk
from titanslab.memory.state import MemoryState, check_shape
from titanslab.memory.transforms import transformed


def _layer_gates(
    gates: dict[str, Tensor | tuple[Tensor, ...]], q: Tensor, widths: list[tuple[int, int]], dtype: torch.dtype
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
                check_shape("alpha", g, (*outer, width), q)
            by_layer[name] = [g.to(dtype) for g in gate]
        elif tuple(gate.shape) == outer:
            check_shape(name, gate, outer, q)
            by_layer[name] = [gate.to(dtype)[..., None]] * depth
        else:
            if gate.dim() == 4 and gate.shape[3] == 1:
                gate = gate.expand(-1, -1, -1, depth)
            if tuple(gate.shape) != (*outer, depth):
                raise ValueError(
                    f"{name} must have shape {list(outer)} or {[*outer, depth]} (per layer), got {list(gate.shape)}"
                )
            check_shape(name, gate, (*outer, depth), q)
            by_layer[name] = [gate.to(dtype)[..., layer, None] for layer in range(depth)]
    rows = list(zip(by_layer["theta"], by_layer["eta"], by_layer["alpha"], strict=True))
    same = all(all(a is b for a, b in zip(row, rows[0], strict=True)) for row in rows)
    return [rows[0]] * depth if same else rows


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
    forget_to: str = "zero",
) -> tuple:
    """Write every token into the memory and read it back right after: `y_t = f(q_t; M_t)` (paper eqs. 9-15).

    `u_t = grad_W ||f(k_t; W) - v_t||^2` at the weights W of the chunk's start, `S_t = eta_t S_{t-1} - theta_t u_t`,
    `M_t = (1 - alpha_t) M_{t-1} + S_t`. `chunk_size` is part of the function; 1 is the paper's online rule. With
    `forget_to="start"`, OURS, `M_t = (1 - alpha_t) M_{t-1} + alpha_t M_0 + S_t`.

    Args:
        q, k, v: `[B,T,H,D]`.
        theta, eta, alpha: `[B,T,H]` or per memory layer `[B,T,H,L]`, already activated; alpha may also be a tuple of
            `[B,T,H,d_in]`, one per layer (channel-wise forgetting).
        network, params: shape of the memory and its slow parameters, heads first.
        state: the state after the tokens before; None = a document starts, at `initial`.
        chunk_size: number of tokens whose gradients are taken at the same weights.
        backend: "auto", or one of "reference", "recurrent", "chunked", "triton", which then runs or raises.
        mask: bool `[B,T]`, True for real tokens. Padding writes nothing, forgets nothing, moves no chunk boundary.
        reset: bool `[B,T]`, True for the first token of a document: the row goes back to `initial`.
        initial: the state at which documents start, one row or B; default M_0 without momentum.
        return_loss: also return the inner loss before each write.
        forget_to: "zero", or "start": forgetting draws the weights to `params.weights`, M_0.

    Returns:
        y `[B,T,H,D]` (0 at padding) in q's dtype, the new state (float32 or float64), and on request the detached
        loss `[B,T,H]`.

    Raises:
        ValueError: a shape, device or name does not fit.
        RuntimeError: the backend that was named cannot run here.
    """
    _check_arguments(q, k, v, network, params, chunk_size, backend)
    if forget_to not in FORGET_TO:
        raise ValueError(f"forget_to must be one of {', '.join(FORGET_TO)}, got {forget_to!r}")
    batch, tokens, heads, head_dim = q.shape
    widths = network.widths(head_dim)
    for name, flags in (("mask", mask), ("reset", reset)):
        if flags is not None:
            check_shape(name, flags, (batch, tokens), q)
            if flags.dtype != torch.bool:
                raise ValueError(f"{name} must be bool, got {flags.dtype}")
    if state is not None:
        if not isinstance(state, MemoryState):
            raise ValueError(f"state must be a MemoryState, got {type(state).__name__}; a layer's is in its .memory")
        state.check("state", q, widths, (batch,), chunk_size)
    if initial is not None:
        initial.check("initial", q, widths, (1, batch))

    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    channelwise = isinstance(alpha, (tuple, list))
    memory = network, head_dim, chunk_size
    way = choose(q.device, q.dtype, tokens, memory, backend, channelwise=channelwise, forget_to=forget_to)
    gates = _layer_gates({"theta": theta, "eta": eta, "alpha": alpha}, q, widths, dtype)
    params, out_dtype = params.to(dtype), q.dtype
    # the fused kernels compute products in the dtype of q, k and v
    if way.backend != "triton":
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        if not transformed():  # torch.func hides the values of a counter
            chunk_size = fitting_chunk(chunk_size, tokens, None if state is None else state.offset)
    base = params.weights if forget_to == "start" else ()
    given = Tokens(q, k, v, gates, mask, reset)
    state = None if state is None else state.in_dtype(dtype)
    if initial is not None:
        initial = initial.in_dtype(dtype)
    elif way.backend == "recurrent" and state is not None and reset is None:
        initial = state  # no document begins, so a step does not read it
    else:
        initial = MemoryState.initial(params, 1)
    if way.backend in ("chunked", "triton") and tokens > 0 and batch > 0:
        if way.backend == "triton":
            y, state, loss = fused(given, network, params, state, initial, chunk_size, base)
        else:
            y, state, loss = chunked(given, network, params, state, initial, chunk_size, way.loop, base)
        return (y.to(out_dtype), state, loss.detach()) if return_loss else (y.to(out_dtype), state)
    start = initial.at_boundary().expand(batch) if state is None else state
    if tokens == 0 or batch == 0:
        y, state, loss = torch.zeros_like(q), start, q.new_zeros(batch, tokens, heads, dtype=dtype)
    elif way.backend == "recurrent" and takes_step(given, params, start):
        y, state, loss = step(given, network, params, start, chunk_size, base)
    else:
        loop = reference if way.backend == "reference" else recurrent
        y, state, loss = loop(given, network, params, start, initial, chunk_size, base)
    result = (y.to(out_dtype), state)
    return (*result, loss.detach()) if return_loss else result


def _check_arguments(
    q: Tensor, k: Tensor, v: Tensor, network: MemoryNetwork, params: MemoryParams, chunk_size: int, backend: str
) -> None:
    if q.dim() != 4:
        raise ValueError(f"q must have shape [B, T, H, D], got {list(q.shape)}")
    heads, head_dim = q.shape[2:]
    for name, x in (("k", k), ("v", v)):
        check_shape(name, x, tuple(q.shape), q)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be an integer of at least 1, got {chunk_size!r}")
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"backend must be one of {', '.join((*BACKENDS, 'auto'))}, got {backend!r}")
    widths = network.widths(head_dim)
    if len(params.weights) != network.depth:
        raise ValueError(f"params.weights must hold {network.depth} tensors (network.depth), got {len(params.weights)}")
    for layer, (weight, width) in enumerate(zip(params.weights, widths, strict=True)):
        check_shape(f"params.weights[{layer}]", weight, (heads, *width), q)
    for name, affine in (("norm_weight", params.norm_weight), ("norm_bias", params.norm_bias)):
        if (affine is not None) != network.norm:
            raise ValueError(
                f"params.{name} must be {'[H, D]' if network.norm else 'None'} where network.norm is {network.norm}"
            )
        if affine is not None:
            check_shape(f"params.{name}", affine, (heads, head_dim), q)
