"""Short causal depthwise convolution after q, k, v (paper §4.4), with its tail as a value."""

import torch
from torch import Tensor, nn

from titanslab.memory.padding import take


class ShortConv(nn.Module):
    """Depthwise causal convolution over the last `kernel_size` tokens.

    A tail `[B, kernel_size-1, dim]` holds the inputs just before the call; None means nothing came before (zeros).
    """

    def __init__(self, dim: int, kernel_size: int = 4) -> None:
        super().__init__()
        self.dim, self.kernel_size = dim, kernel_size
        self.weight = nn.Parameter(torch.empty(kernel_size, dim))  # row j weighs the token j steps back
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.kernel_size**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.dim}, kernel_size={self.kernel_size}"

    def forward(self, x: Tensor, *call: Tensor | None) -> tuple[Tensor, Tensor]:
        """`short_conv` with this module's weight; `call` are its arguments from `tail` on."""
        return short_conv(x, self.weight, *call)


def short_conv(
    x: Tensor,
    weight: Tensor,
    tail: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    initial_tail: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`x [B,T,dim]`, `weight [kernel_size, dim]` -> output `[B,T,dim]` and the tail after the call.

    Args:
        tail: `[B, kernel_size-1, dim]`, the inputs before the call; None = zeros.
        lengths: int64 `[B]`, real tokens of each row, which come first; None = all.
        reset: bool `[B,T]`, first tokens of documents: what is before them is `initial_tail`.
    """
    (batch, tokens, dim), kernel_size = x.shape, weight.shape[0]
    back = kernel_size - 1
    empty = x.new_zeros(batch, back, dim)
    tail = empty if tail is None else tail.to(x.dtype)
    history = torch.cat([tail, x], 1)
    if reset is None:
        y = history[:, back:] * weight[0]
        for j in range(1, kernel_size):
            y = torch.addcmul(y, history[:, back - j : back - j + tokens], weight[j])
        if lengths is None:
            return y, history[:, tokens:]
        return y, take(history, lengths[:, None] + torch.arange(back, device=x.device))
    fresh = empty if initial_tail is None else initial_tail.to(x.dtype).expand(batch, -1, -1)
    history = torch.cat([fresh, history], 1)
    position = torch.arange(tokens, device=x.device).expand(batch, tokens)
    start = torch.where(reset, position, -kernel_size).cummax(1).values
    y = x * weight[0]
    for j in range(1, kernel_size):
        y = torch.addcmul(y, _look_back(history, position, j, start, back), weight[j])
    end = torch.full((batch,), tokens, device=x.device) if lengths is None else lengths
    last = start.gather(1, (end - 1).clamp_min(0)[:, None])
    last = last.masked_fill((end == 0)[:, None], -kernel_size)
    new_tail = [_look_back(history, end[:, None], j, last, back) for j in range(back, 0, -1)]
    return y, torch.cat(new_tail, 1) if new_tail else empty


def _look_back(history: Tensor, position: Tensor, j: int, start: Tensor, back: int) -> Tensor:
    """Inputs j steps before `position`, in `[initial tail | tail | x]`, not past a document's start."""
    source = position - j
    before_document = (start >= 0) & (source < start)
    return take(history, torch.where(before_document, back + source - start, 2 * back + source))
