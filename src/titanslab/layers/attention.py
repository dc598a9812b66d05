"""Multi-head attention with persistent tokens, full or with a sliding window, and its bounded cache."""

import torch
from torch import Tensor, nn

from titanslab.layers.rotary import apply_rotary
from titanslab.layers.window import KeysValues, attend, attend_last

Tables = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal attention of each position to the persistent tokens and to the last `window_size` tokens.

    A window includes the token itself: position i attends to i - window_size + 1 .. i. Every position attends to the
    persistent tokens, which have no position of their own and no output.

    Args:
        hidden_size: width of the input; heads are `hidden_size / num_heads` wide.
        num_heads: number of heads.
        window_size: tokens in the window, or None for all of them; the cache then grows with every token.
        project_output: False if a later gate has the output projection.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, window_size: int | None = None, project_output: bool = True
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads, got {hidden_size} and {num_heads}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False) if project_output else None

    def split_heads(self, x: Tensor) -> Tensor:
        """`[B, T, hidden]` -> `[B, H, T, D]`."""
        return x.unflatten(-1, (self.num_heads, x.shape[-1] // self.num_heads)).transpose(1, 2)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v `[B, T, hidden]` of `x [B, T, hidden]`, not rotated, for `forward`."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def queries(self, x: Tensor, rotary: Tables) -> Tensor:
        """Rotated queries `[B, H, T, D]` of `x [B, T, hidden]`."""
        return apply_rotary(self.split_heads(self.q_proj(x)), rotary)

    def keys_values(self, x: Tensor, rotary: Tables | None) -> KeysValues:
        """Keys and values `[B, H, T, D]` of `x`. `rotary` is None for tokens without a position."""
        keys = self.split_heads(self.k_proj(x))
        return keys if rotary is None else apply_rotary(keys, rotary), self.split_heads(self.v_proj(x))

    def merge_heads(self, x: Tensor) -> Tensor:
        """`[B, H, T, D]` -> `[B, T, hidden]`, through the output projection if the layer has one."""
        x = x.transpose(1, 2).flatten(2)
        return x if self.o_proj is None else self.o_proj(x)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        rotary: Tables,
        *,
        persistent: Tensor | None = None,
        state: KeysValues | None = None,
        count: Tensor | None = None,
        lengths: Tensor | None = None,
        documents: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, KeysValues | None]:
        """Attend, and with `return_state` return the keys and values that later calls need.

        Args:
            queries, keys, values: `[B, T, hidden]`, real tokens on the left of each row, not rotated, as `projected`
                returns them; a convolution may come between.
            rotary: cosines and sines `[B or 1, T, D/2]` of the positions in their documents.
            persistent: `[N, hidden]` or None.
            state: keys and values `[B, H, N + L, D]` that an earlier call returned: those of the persistent tokens,
                then those of the window (L = `window_size - 1`) or of all earlier tokens, newest last.
            count: int64 `[B]`, tokens of the running document before this call; required with `state`.
            lengths: int64 `[B]`, number of real tokens in each row; None if no row has padding.
            documents: int64 `[B, T]`, index of the document in this call; 0 is the document that was running before.

        Returns:
            `(y [B, T, hidden], state or None)`.
        """
        size = 0 if persistent is None else persistent.shape[0]
        q, k = (apply_rotary(self.split_heads(t), rotary) for t in (queries, keys))
        v = self.split_heads(values)
        if state is not None and count is not None and lengths is None and q.shape[2] == 1:
            seen = torch.cat((state[0], k), dim=2), torch.cat((state[1], v), dim=2)
            y = self.merge_heads(attend_last(q, *seen, seen[0].shape[2] - size - 1, count, documents))
            return y, self._without_oldest(size, *seen) if return_state else None
        past: KeysValues | None = None
        prefix: KeysValues | None = None
        if state is not None:
            prefix = (state[0][:, :, :size], state[1][:, :, :size]) if size else None
            past = (state[0][:, :, size:], state[1][:, :, size:])
        elif persistent is not None:
            prefix = self.keys_values(persistent.unsqueeze(0).to(queries.dtype), None)
        out = attend(q, k, v, prefix=prefix, window=self.window_size, past=past, past_count=count, documents=documents)
        return self.merge_heads(out), self._next_state(prefix, past, (k, v), lengths) if return_state else None

    def _without_oldest(self, size: int, *tensors: Tensor) -> KeysValues:
        """State after one token, from `[persistent | past | token]`; a window drops its oldest token."""
        if self.window_size is not None:
            tensors = tuple(torch.cat((t[:, :, :size], t[:, :, size + 1 :]), dim=2) for t in tensors)
        return tensors[0], tensors[1]

    def _next_state(
        self, prefix: KeysValues | None, past: KeysValues | None, new: KeysValues, lengths: Tensor | None
    ) -> KeysValues:
        """State after a call: the prefix, then the newest real tokens of `past` and `new`."""
        out = []
        for i in range(2):
            tokens = new[i]
            if past is not None:
                tokens = torch.cat((past[i], tokens), dim=2)
            slots = tokens.shape[2] if self.window_size is None else self.window_size - 1
            tokens = _newest(tokens, slots, None if lengths is None else lengths - new[i].shape[2])
            if prefix is not None:
                tokens = torch.cat((prefix[i].expand(tokens.shape[0], -1, -1, -1), tokens), dim=2)
            out.append(tokens)
        return out[0], out[1]


def _newest(tokens: Tensor, slots: int, shift: Tensor | None) -> Tensor:
    """The `slots` tokens of `[B, H, L, D]` that end at `L + shift[b]` in row b; slots before token 0 are zero."""
    batch, heads, length, width = tokens.shape
    if shift is None:
        if slots <= length:
            return tokens[:, :, length - slots :]
        return torch.cat((tokens.new_zeros(batch, heads, slots - length, width), tokens), dim=2)
    index = torch.arange(length - slots, length, device=tokens.device) + shift[:, None]
    real = (index >= 0)[:, None, :, None]
    index = index.clamp(min=0)[:, None, :, None].expand(batch, heads, slots, width)
    return tokens.gather(2, index) * real
