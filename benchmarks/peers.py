"""The candidates of `memory_op`: our memory and its peers, each set up as its authors intend.

All candidates take the same input. They run forward without gradients, or forward + backward with gradients of the
input and of all parameters. A candidate that cannot run here raises `Missing` with the reason, which the report has.
"""

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import floor
from titanslab.memory.config import BACKENDS


class Missing(Exception):
    """Raised for a candidate that cannot run here, with the reason."""


@dataclass(frozen=True)
class Setting:
    """One point of the measurement. `window` is read by windowed attention alone."""

    tokens: int
    chunk: int = 16
    depth: int = 2
    dim: int = 256
    heads: int = 4
    expansion: int = 4
    batch: int = 1
    window: int = 512
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    backend: str = "auto"

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def label(self) -> str:
        return f"T={self.tokens} chunk={self.chunk} depth={self.depth} batch={self.batch}"

    def shorter(self, tokens: int) -> "Setting":
        return dataclasses.replace(self, tokens=tokens)


class Work:
    """A candidate that is ready to run: `forward()` without gradients, `step()` with forward and backward.

    Args:
        setting: the setting.
        call: computes the output; it takes no arguments.
        leaves: tensors that receive a gradient.
        note: difference of this candidate from ours, for the report.
        flops, moved: forward FLOPs and bytes by formula (`floor`), or None without a formula.
        fast_weights: number of weights in the memories, or None.
    """

    def __init__(
        self,
        setting: Setting,
        call: Callable[[], Tensor],
        leaves: list[Tensor],
        note: str,
        flops: int | None = None,
        moved: int | None = None,
        fast_weights: int | None = None,
    ) -> None:
        self.setting, self.note, self.flops, self.moved = setting, note, flops, moved
        self.fast_weights = fast_weights
        self.leaves = [t for t in leaves if t.requires_grad]
        self._call = call
        self._grad: Tensor | None = None

    def output(self) -> Tensor:
        """The output with its graph."""
        if self.setting.dtype == "float32":
            return self._call()
        with torch.autocast(self.setting.device, getattr(torch, self.setting.dtype)):
            return self._call()

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.output()

    def step(self) -> Tensor:
        y = self.output()
        if self._grad is None:
            generator = torch.Generator().manual_seed(1)
            self._grad = torch.randn(y.shape, generator=generator).to(y)
        y.backward(self._grad)
        for leaf in self.leaves:
            leaf.grad = None
        return y.detach()


def _input(s: Setting) -> Tensor:
    generator = torch.Generator().manual_seed(s.seed)
    x = torch.randn(s.batch, s.tokens, s.dim, generator=generator)
    return x.to(s.device).requires_grad_()


def _module_work(s: Setting, module: nn.Module, call: Callable[[Tensor], Tensor], **rest: Any) -> Work:
    module = module.to(s.device)
    x = _input(s)
    return Work(s, lambda: call(x), [x, *module.parameters()], **rest)


def _memory_cost(s: Setting) -> tuple[int, int]:
    item = 4 if s.dtype == "float32" else 2
    return (
        floor.memory_flops(s.tokens, s.chunk, s.heads, s.head_dim, s.depth, s.expansion, s.batch),
        floor.memory_bytes(s.tokens, s.heads, s.head_dim, s.depth, s.batch, item),
    )


def _weights(s: Setting) -> int:
    return s.heads * sum(i * o for i, o in floor.widths(s.head_dim, s.depth, s.expansion))


def titanslab_layer(s: Setting) -> Work:
    from titanslab.memory import NeuralMemory

    module = NeuralMemory(s.dim, s.heads, depth=s.depth, expansion=s.expansion, chunk_size=s.chunk, backend=s.backend)
    flops, moved = _memory_cost(s)
    flops += floor.projection_flops(s.tokens, s.dim, s.dim, 3 * s.heads * s.depth, s.batch)
    return _module_work(
        s,
        module,
        lambda x: module(x)[0],
        note="NeuralMemory layer: projections, short convolutions, gates per token and layer, output gate",
        flops=flops,
        moved=moved,
        fast_weights=_weights(s),
    )


def titanslab_op(s: Setting) -> Work:
    """`neural_memory` on given q, k, v and gates, drawn from the distribution of a new layer."""
    from titanslab.memory import MemoryNetwork, MemoryParams, NeuralMemory, neural_memory

    layer = NeuralMemory(s.dim, s.heads, depth=s.depth, expansion=s.expansion, chunk_size=s.chunk).to(s.device)
    moments = torch.tensor([1 / limit for limit in layer.step_limits()], device=s.device)
    params = MemoryParams(
        tuple(w.detach().clone().requires_grad_() for w in layer.params.weights),
        torch.ones(s.heads, s.head_dim, device=s.device, requires_grad=True),
        torch.zeros(s.heads, s.head_dim, device=s.device, requires_grad=True),
    )
    network = MemoryNetwork(s.depth, s.expansion)
    generator = torch.Generator().manual_seed(s.seed)

    def draw(last: int) -> Tensor:
        return torch.randn(s.batch, s.tokens, s.heads, last, generator=generator).to(s.device)

    dtype = getattr(torch, s.dtype)
    q, k = (F.normalize(draw(s.head_dim), dim=-1).to(dtype).requires_grad_() for _ in range(2))
    v = F.silu(draw(s.head_dim)).to(dtype).requires_grad_()
    eta = torch.sigmoid(draw(s.depth))
    theta = (torch.sigmoid(draw(s.depth)) * (1 - eta) / moments).requires_grad_()
    alpha = torch.sigmoid(draw(s.depth) - 4).requires_grad_()
    eta.requires_grad_()
    flops, moved = _memory_cost(s)
    slow = [*params.weights, params.norm_weight, params.norm_bias]
    return Work(
        s,
        lambda: neural_memory(q, k, v, theta, eta, alpha, network, params, chunk_size=s.chunk, backend=s.backend)[0],
        [q, k, v, theta, eta, alpha, *(t for t in slow if t is not None)],
        note="neural_memory alone: no projections, convolutions or output gate",
        flops=flops,
        moved=moved,
        fast_weights=_weights(s),
    )


def _titans_pytorch(s: Setting, chunk: int, batch_size: int, note: str) -> Work:
    try:
        from titans_pytorch import MemoryMLP, NeuralMemory
    except ImportError as error:
        raise Missing(f"titans-pytorch: {error}; pip install 'titans-lab[bench]'") from error
    module = NeuralMemory(
        dim=s.dim,
        chunk_size=chunk,
        batch_size=batch_size,
        dim_head=s.head_dim,
        heads=s.heads,
        model=MemoryMLP(dim=s.head_dim, depth=s.depth, expansion_factor=s.expansion),
        use_accelerated_scan=s.device == "cuda" and importlib.util.find_spec("accelerated_scan") is not None,
    )
    return _module_work(s, module, lambda x: module(x)[0], note=note, fast_weights=_weights(s))


def titans_pytorch(s: Setting) -> Work:
    return _titans_pytorch(
        s,
        s.chunk,
        s.chunk,
        "NeuralMemory(chunk_size=C, batch_size=C): gradients at the same weights as ours, step size per token; "
        "momentum, forgetting and the state for reads once per chunk, so it computes less",
    )


def titans_pytorch_per_token(s: Setting) -> Work:
    return _titans_pytorch(
        s,
        1,
        s.chunk,
        "NeuralMemory(chunk_size=1, batch_size=C): the same anchors as ours and all gates per token; it holds "
        "a full set of weights per token",
    )


def titans_unofficial(s: Setting) -> Work:
    try:
        from titans.utils.memory import NeuralMemoryModule
    except ImportError as error:
        raise Missing(f"titans-unofficial: {error}; pip install 'titans-lab[bench]'") from error
    module = NeuralMemoryModule(d_model=s.dim, memory_depth=s.depth)
    return _module_work(
        s,
        module,
        lambda x: module(x)[0],
        note="NeuralMemoryModule with its defaults: chunks of one token, one memory of full width without heads, "
        "expansion or norm, gates per token, clipped gradient, read before the write",
        fast_weights=s.depth * s.dim * (s.dim + 1),
    )


class _Attention(nn.Module):
    """Causal multi-head attention with its four projections, full or with a window."""

    def __init__(self, s: Setting, window: int | None) -> None:
        super().__init__()
        self.heads, self.window = s.heads, window
        self.qkv = nn.Linear(s.dim, 3 * s.dim, bias=False)
        self.out = nn.Linear(s.dim, s.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if self.window is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            from titanslab.layers.window import attend

            y = attend(q, k, v, window=self.window)
        return self.out(y.transpose(1, 2).flatten(2))


def _sdpa(s: Setting, window: int | None, note: str) -> Work:
    module = _Attention(s, window)
    item = 4 if s.dtype == "float32" else 2
    return _module_work(
        s,
        module,
        module,
        note=note,
        flops=floor.attention_flops(s.tokens, s.dim, window, s.batch),
        moved=floor.attention_bytes(s.tokens, s.dim, s.batch, item),
    )


def sdpa_full(s: Setting) -> Work:
    return _sdpa(s, None, "causal scaled_dot_product_attention with q, k, v, output projections")


def sdpa_window(s: Setting) -> Work:
    return _sdpa(s, s.window, f"the same with a window of {s.window} tokens, in blocks")


def _fla(s: Setting, what: str) -> None:
    if s.device != "cuda":
        raise Missing(f"{what} of flash-linear-attention runs on a GPU; this run is on {s.device}")
    if importlib.util.find_spec("fla") is None:
        raise Missing("flash-linear-attention is not installed; pip install flash-linear-attention")


def fla_gated_delta_rule(s: Setting) -> Work:
    _fla(s, "the gated delta rule")
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q, k, v, rate, _ = _fla_inputs(s)
    g = F.logsigmoid(torch.randn(s.batch, s.tokens, s.heads, device=s.device) + 4).requires_grad_()
    return Work(
        s,
        lambda: chunk_gated_delta_rule(q, k, v, g, rate)[0],
        [q, k, v, rate, g],
        note="linear memory without momentum, its own tile size; op alone, with q, k, v as in titanslab-op",
    )


def fla_ttt_linear(s: Setting) -> Work:
    _fla(s, "TTT-Linear")
    if s.chunk not in (16, 32, 64):
        raise Missing(f"chunk_ttt_linear takes chunks of 16, 32 or 64; this setting has {s.chunk}")
    from fla.ops.ttt import chunk_ttt_linear

    q, k, v, rate, norm = _fla_inputs(s)
    return Work(
        s,
        lambda: chunk_ttt_linear(q, k, v, *norm, rate[..., None], chunk_size=s.chunk)[0],
        [q, k, v, rate, *norm],
        note="linear memory with norm, without momentum and forgetting; op alone, same chunk",
    )


def _fla_inputs(s: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    # these kernels are written for low precision; a float32 setting keeps float32
    dtype = getattr(torch, s.dtype)
    generator = torch.Generator().manual_seed(s.seed)
    shape = (s.batch, s.tokens, s.heads, s.head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(s.device) for _ in range(3))
    q, k = (F.normalize(t, dim=-1).to(dtype).requires_grad_() for t in (q, k))
    rate = torch.rand(shape[:3], generator=generator).to(s.device, dtype).requires_grad_()
    norm = [
        torch.ones(s.heads, s.head_dim, device=s.device, dtype=dtype, requires_grad=True),
        torch.zeros(s.heads, s.head_dim, device=s.device, dtype=dtype, requires_grad=True),
    ]
    return q, k, v.to(dtype).requires_grad_(), rate, norm


CANDIDATES: dict[str, Callable[[Setting], Work]] = {
    "titanslab": titanslab_layer,
    "titanslab-op": titanslab_op,
    "titans-pytorch": titans_pytorch,
    "titans-pytorch-per-token": titans_pytorch_per_token,
    "titans-unofficial": titans_unofficial,
    "sdpa-full": sdpa_full,
    "sdpa-window": sdpa_window,
    "fla-gated-delta-rule": fla_gated_delta_rule,
    "fla-ttt-linear": fla_ttt_linear,
}


OURS = ("titanslab", "titanslab-op")


def plain(name: str) -> str:
    """The candidate's name without its backend."""
    return name.partition(":")[0]


def candidate(text: str) -> str:
    """A name of `CANDIDATES`; ours may name their backend, as in `titanslab-op:triton`. For argparse."""
    name, colon, backend = text.partition(":")
    if name in CANDIDATES and (not colon or (name in OURS and backend in BACKENDS)):
        return text
    raise argparse.ArgumentTypeError(
        f"must be one of {', '.join(CANDIDATES)}; {' and '.join(OURS)} may have a backend behind a colon "
        f"({', '.join(BACKENDS)}); got {text!r}"
    )


def build(name: str, setting: Setting) -> Work:
    """Build the candidate of that name (`candidate`).

    Raises:
        Missing: the candidate cannot run here.
        ValueError: unknown candidate.
    """
    if plain(name) not in CANDIDATES:
        raise ValueError(f"candidate must be one of {', '.join(CANDIDATES)}, got {name!r}")
    if name != plain(name):
        setting = dataclasses.replace(setting, backend=name.partition(":")[2])
    torch.manual_seed(setting.seed)
    return CANDIDATES[plain(name)](setting)


# Peak of titans-pytorch in forward + backward, in full sets of fast weights per chunk (measured at 2K tokens with
# chunks of 16 and 64). It serves to leave out settings that do not fit into memory.
TITANS_PYTORCH_COPIES = 16


def too_much(name: str, s: Setting, memory_limit: int, slow_tokens: int) -> str | None:
    """Reason to leave a candidate out (too much memory, or a Python loop over too many tokens), or None."""
    if name == "titans-unofficial" and s.tokens > slow_tokens:
        return f"has a Python loop over tokens; not run above {slow_tokens} tokens (--slow-tokens)"
    if name == "titans-unofficial" and s.chunk != 1:
        return "has chunks of one token alone"
    if name.startswith("titans-pytorch"):
        sets = s.tokens if name.endswith("per-token") else -(-s.tokens // s.chunk)
        need = TITANS_PYTORCH_COPIES * s.batch * sets * _weights(s) * 4
        if need > memory_limit:
            return f"needs about {need / 2**30:.0f} GiB, above the {memory_limit / 2**30:.0f} of --memory-limit"
        if sets // max(1, s.batch) > 2 * slow_tokens and s.chunk == 1:
            return f"has a Python loop over chunks; not run above {2 * slow_tokens} chunks (--slow-tokens)"
    return None
