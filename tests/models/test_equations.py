"""LMM, MAL, MAG and MAC as the paper writes them, one token at a time, against the shipped mixers.

Equation numbers are those of arXiv 2501.00663 v1. The functions `lmm`, `mal`, `mag` and `mac` are the shortest correct
programs for the four variants, and a tutorial: the memory appears through its public verbs alone, which are
`initial_state`, `update` (write), `retrieve` (read) and a call (write, then read). They run on a copy of the mixer
whose memory is the token loop of `titanslab/memory/reference.py`, so no fast path has a part in them.
"""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from titanslab import TitansConfig
from titanslab.layers import Attention, MemoryGate, apply_rotary, rotary_tables
from titanslab.models.block import MIXERS
from titanslab.models.call import make_call
from titanslab.models.mixer import Mixer
from tolerances import EXACT


def heads(x: Tensor, attention: Attention, position: int | None = None) -> Tensor:
    """Heads `[B, H, D]` of one projected token `[B, hidden]`, rotated to its position if it has one."""
    x = x.unflatten(-1, (attention.num_heads, -1))
    if position is None:
        return x
    tables = rotary_tables(torch.tensor([[position]]), x.shape[-1], 10_000.0, x.dtype)
    return apply_rotary(x.unsqueeze(2), tables).squeeze(2)


def attend(attention: Attention, x: Tensor, position: int, seen: list[tuple[Tensor, int | None]]) -> Tensor:
    """Softmax attention of one token `x [B, hidden]` to the tokens that it may see, each with its position."""
    q = heads(attention.q_proj(x), attention, position)
    k = torch.stack([heads(attention.k_proj(s), attention, p) for s, p in seen], dim=2)
    v = torch.stack([heads(attention.v_proj(s), attention) for s, _ in seen], dim=2)
    weights = torch.softmax((k @ q.unsqueeze(-1)).squeeze(-1) / math.sqrt(q.shape[-1]), dim=-1)
    y = (weights.unsqueeze(-2) @ v).flatten(1)
    return y if attention.o_proj is None else attention.o_proj(y)


def prefix(mixer: Mixer, x: Tensor) -> list[tuple[Tensor, int | None]]:
    """The persistent tokens p_1 .. p_N for every row of `x`. They have no position."""
    if mixer.persistent is None:
        return []
    return [(p.expand(x.shape[0], -1), None) for p in mixer.persistent]


def gate(layer: MemoryGate, y: Tensor, m: Tensor) -> Tensor:
    """`y (x) m` of eqs. 25 and 28: both are normalised with learned vectors, then combined by a gate (OURS)."""
    a, b = layer.y_norm(y), layer.m_norm(m)
    if layer.gate_type == "mix":
        g = torch.sigmoid(layer.gate_proj(a))
        return g * a + (1 - g) * b
    return a * (torch.sigmoid(b) if layer.gate_type == "sigmoid" else F.silu(b))


def read_after_writing(mixer: Mixer, x: Tensor) -> Tensor:
    """M(p || x): the memory reads the persistent tokens, then writes each token and is read by the same token."""
    memory = mixer.memory.initial_state(x.shape[0], persistent=mixer.persistent)
    ys = []
    for t in range(x.shape[1]):
        token = x[:, t : t + 1]
        # Eqs. 9-14: M_t = (1 - alpha_t) M_{t-1} + S_t
        memory = mixer.memory.update(token, memory)
        # Eq. 15: y_t = M_t(q_t)
        y, memory = mixer.memory.retrieve(token, memory)
        ys.append(y)
    return torch.cat(ys, dim=1)


def sliding_window(attention: Attention, mixer: Mixer, x: Tensor) -> Tensor:
    """SW-Attn*(p || x): token i attends to the persistent tokens and the last `window_size` tokens, with itself."""
    ys = []
    for i in range(x.shape[1]):
        window = [(x[:, j], j) for j in range(max(0, i - attention.window_size + 1), i + 1)]
        ys.append(attend(attention, x[:, i], i, prefix(mixer, x) + window))
    return torch.stack(ys, dim=1)


def lmm(mixer: Mixer, x: Tensor) -> Tensor:
    """§4.4: the memory is the token mixer."""
    return read_after_writing(mixer, mixer.norm(x))


def mal(mixer: Mixer, x: Tensor) -> Tensor:
    """§4.3: the memory is a layer before sliding-window attention; each has its norm and its residual (OURS)."""
    # Eqs. 29, 30: y = M(p || x)
    y = read_after_writing(mixer, mixer.norm(x))
    # Eq. 31: o = SW-Attn*(y)
    o = sliding_window(mixer.attention, mixer, mixer.attention_norm(x + y))
    return y + o


def mag(mixer: Mixer, x: Tensor) -> Tensor:
    """§4.2: sliding-window attention and the memory read the same tokens, and a gate joins the two."""
    x = mixer.norm(x)
    # Eqs. 26, 27: y = SW-Attn*(p || x)
    y = sliding_window(mixer.attention, mixer, x)
    # Eq. 28: o = y (x) M(p || x)
    o = gate(mixer.gate, y, read_after_writing(mixer, x))
    return mixer.o_proj(o)


def mac(mixer: Mixer, x: Tensor) -> Tensor:
    """§4.1: attention over a segment has the tokens h as context, which are read from the memory for the segment.

    OURS: token i attends to h_j for j <= i alone, because h_j depends on token j. The last read is from M_i, the memory
    after token i. y is attention's output plus the token. h and y are normalised before they are used.
    """
    memory = mixer.memory.initial_state(x.shape[0], persistent=mixer.persistent)
    outputs = []
    for segment in mixer.norm(x).split(mixer.segment_len, dim=1):
        # Eq. 21: h = M_{t-1}(q), the memory after the previous segment, read without a write
        h, memory = mixer.memory.retrieve(segment, memory)
        h = mixer.h_norm(h)
        for i in range(segment.shape[1]):
            # Eq. 22: p || h || S
            retrieved = [(h[:, j], j) for j in range(i + 1)]
            own = [(segment[:, j], j) for j in range(i + 1)]
            # Eq. 23: y = Attn(p || h || S)
            y = segment[:, i] + attend(mixer.attention, segment[:, i], i, prefix(mixer, x) + retrieved + own)
            # Eq. 24: M_t = M_{t-1}(y), the write, and the read of eq. 25 right after it
            m, memory = mixer.memory(mixer.y_norm(y).unsqueeze(1), memory)
            # Eq. 25: o = y (x) M_t(y)
            outputs.append(mixer.o_proj(gate(mixer.gate, y, m.squeeze(1))))
    return torch.stack(outputs, dim=1)


LITERAL = {"lmm": lmm, "mal": mal, "mag": mag, "mac": mac}
SETTINGS = {
    "plain": {},
    "depth-1": {"memory_depth": 1, "memory_norm": False, "memory_residual": False, "conv_size": 1},
    "depth-3": {"memory_depth": 3, "memory_gates_per_layer": False, "chunk_size": 3},
    "no-persistent": {"num_persistent_tokens": 0, "gate_type": "sigmoid", "segment_len": 5, "window_size": 4},
    "online": {"chunk_size": 1, "gate_type": "silu", "num_persistent_tokens": 1},
    "long-chunks": {"chunk_size": 8, "segment_len": 6, "window_size": 30, "memory_gate_keys": True},
    "heads": {"num_memory_heads": 4, "num_attention_heads": 1, "memory_grad_clip": 0.2, "segment_len": 16},
    "segments-of-one": {"segment_len": 1, "window_size": 1, "memory_momentum": False},
    "no-forgetting": {"segment_len": 40, "memory_forgetting": False, "memory_expansion": 1},
}


def make_mixer(variant: str, backend: str, **fields: object) -> tuple[TitansConfig, Mixer]:
    """A mixer with parameters away from their initial values, equal for every backend."""
    shape: dict = dict(
        hidden_size=16, num_attention_heads=2, memory_expansion=2, chunk_size=4, segment_len=8, window_size=6,
        num_persistent_tokens=3, memory_half_lives=[2, 64], memory_theta_bias=0.0,
    )  # fmt: skip
    config = TitansConfig(variant=variant, memory_backend=backend, **(shape | fields))
    torch.manual_seed(0)
    mixer = MIXERS[variant](config).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return config, mixer


def outputs_and_gradients(mixer: Mixer, run: Callable[[Mixer, Tensor], Tensor], tokens: int) -> dict[str, Tensor]:
    """The output of `run`, and the gradients of the input and of all parameters for a fixed random functional of it."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(2, tokens, 16, generator=generator, dtype=torch.float64)  # noqa: E731
    x = draw().requires_grad_()
    y = run(mixer, x)
    (y * draw()).sum().backward()
    return {"output": y.detach(), "input": x.grad, **{name: p.grad for name, p in mixer.named_parameters()}}


def distance(variant: str, tokens: int, literal: Callable[[Mixer, Tensor], Tensor], **fields: object) -> float:
    """The largest error of the shipped mixer, relative to 1 + the largest entry of each tensor."""

    def shipped(mixer: Mixer, x: Tensor) -> Tensor:
        return mixer(x, make_call(config, x))[0]

    config, mixer = make_mixer(variant, "auto", **fields)
    got = outputs_and_gradients(mixer, shipped, tokens)
    want = outputs_and_gradients(make_mixer(variant, "reference", **fields)[1], literal, tokens)
    assert not [name for name, t in got.items() if t is None or not t.any()], "a gradient is missing or zero"
    zero = torch.zeros(())  # a changed program, below, may not use a parameter
    pairs = [(t, zero if want[name] is None else want[name]) for name, t in got.items()]
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in pairs)


@pytest.mark.parametrize("variant", LITERAL)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("tokens", [7, 16, 21])
def test_a_shipped_mixer_is_its_equations(variant: str, setting: str, tokens: int) -> None:
    assert distance(variant, tokens, LITERAL[variant], **SETTINGS[setting]) < EXACT


# variants, a piece of their programs above, and its replacement; each change must make the test fail
MUTATIONS = {
    "the memory writes nothing": ("lmm mal mag", "memory = mixer.memory.update(token, memory)", "pass"),
    "the memory does not read p": ("lmm mal mag mac", "persistent=mixer.persistent", "persistent=None"),
    "attention does not see p": ("mal mag mac", "prefix(mixer, x) +", "[] +"),
    "the window is one token shorter": ("mal mag", "window_size + 1", "window_size + 2"),
    "no residual beside the memory": ("mal", "attention_norm(x + y)", "attention_norm(y)"),
    "no gate in mag": ("mag", "gate(mixer.gate, y, read_after_writing(mixer, x))", "y"),
    "no gate in mac": ("mac", "gate(mixer.gate, y, m.squeeze(1))", "y"),
    "h_j is seen by earlier tokens": (
        "mac",
        "(h[:, j], j) for j in range(i + 1)",
        "(t, j) for j, t in enumerate(h.unbind(1))",
    ),
    "h is not seen": ("mac", "+ retrieved + own", "+ own"),
    "h is not normalised": ("mac", "h = mixer.h_norm(h)", "pass"),
    "h is of the memory before all segments": (
        "mac",
        "retrieve(segment, memory)",
        "retrieve(segment, mixer.memory.initial_state(2, mixer.persistent))",
    ),
    "y is attention's output alone": ("mac", "y = segment[:, i] + attend", "y = attend"),
    "the tokens are written in place of y": ("mac", "mixer.y_norm(y)", "segment[:, i]"),
    "the last read is before the write": ("mac", "m, memory = mixer.memory(", "m, memory = mixer.memory.retrieve("),
}


@pytest.mark.parametrize("change", MUTATIONS)
def test_a_change_of_an_equation_is_seen(change: str) -> None:
    variants, old, new = MUTATIONS[change]
    source = "\n".join(map(inspect.getsource, (read_after_writing, sliding_window, lmm, mal, mag, mac)))
    assert old in source
    changed = dict(globals())
    exec(source.replace(old, new), changed)
    for variant in variants.split():
        assert distance(variant, 21, changed[variant]) > 1e-3
