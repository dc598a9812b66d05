"""MAC: memory as context. Read, attend, write, read (paper §4.1, eqs. 21-25)."""

import warnings

import torch
from torch import Tensor, nn

from titanslab.layers import Attention, MemoryGate, RMSNorm
from titanslab.memory.backends import has_hooks
from titanslab.memory.layer import recompute
from titanslab.models.call import Call
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer
from titanslab.models.segments import Segments
from titanslab.models.state import MixerState, Update


class MemoryAsContext(Mixer):
    """Attention inside segments, over the persistent tokens, what the memory recalls, and the segment.

    For a segment s of `segment_len` tokens, with M the memory after the previous segment:

        h = M(q(s))                                       # Eq. 21, read only
        y_i = s_i + attention of s_i over [P | h_j, j <= i | s_j, j <= i]     # Eqs. 22, 23
        M_i = M after writing y_1 .. y_i                  # Eq. 24
        o_i = gate(y_i, M_i(y_i))                         # Eq. 25

    OURS: h_j is hidden from earlier positions and the last read uses M_i, not the segment's end: either would
    show the future. h is normalised before attention, y before it is written; h_j and s_j share a position. y keeps
    the token beside what attention adds: from attention's mean over a segment alone a memory learns no recall
    (docs/log.md).
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.segment_len = config.segment_len
        self.num_persistent_tokens = config.num_persistent_tokens
        self.h_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, project_output=False)
        self.y_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate = MemoryGate(config.hidden_size, config.gate_type, config.rms_norm_eps)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        if not torch.compiler.is_compiling():
            self._warn_of_hooks()
        segments = Segments(self, self.norm(x), call, state, keep=return_state)
        written = segments.written  # of the segments that a kernel has walked over
        for s in segments:
            h = self.h_norm(segments.retrieve(s))  # Eq. 21
            y = s.x + segments.attend(s, h)  # Eqs. 22, 23
            normed = self.y_norm(y)
            written.append((y, normed, segments.update(normed)))  # Eq. 24, and the reads M_i(y_i)
        y, normed, reads = (
            torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*written, strict=True)
        )
        o = self.o_proj(recompute(self._combine, y, normed, reads))
        return segments.in_rows(o), segments.state() if return_state else None

    def _warn_of_hooks(self) -> None:
        """MAC reads and writes its memory in steps of its own, so that no single call of it exists for a hook."""
        for name in ("memory", "attention"):
            if has_hooks(getattr(self, name)):
                warnings.warn(
                    f"a hook on the {name} of a MAC block is never called, because the block calls its parts in turn; "
                    f"put the hook on the block or on a layer inside its {name}, such as q_proj or o_proj",
                    stacklevel=2,
                )

    def _combine(self, y: Tensor, normed: Tensor, reads: Tensor) -> Tensor:
        """The gate of attention and memory, from the reads `[B, T, H, D]` of the normalised tokens. Eq. 25."""
        return self.gate(y, self.memory.gated_output(reads, self.memory.g_proj(normed)))
