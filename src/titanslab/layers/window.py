"""Causal softmax attention over a prefix, a past and a window, without a T x T mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]

QUERY_BLOCK = 1024  # queries per block if a mask over all keys is needed
MASK_ELEMENTS = 1 << 26  # most elements of one mask


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prefix: KeysValues | None = None,
    window: int | None = None,
    past: KeysValues | None = None,
    past_count: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Attention of each query to the prefix and the last `window` tokens of its own document, itself included.

    Args:
        q, k, v: `[B, H, T, D]` of the new tokens, already rotated.
        prefix: keys and values `[B or 1, H, N, D]`, or None.
        window: tokens in the window, or None for all tokens.
        past: keys and values `[B, H, L, D]` of earlier calls, the newest last. With a window, L is `window - 1`.
        past_count: int64 `[B]`, number of the past's last slots that belong to the running document.
        documents: int64 `[B, T]`, index of each token's document in this call; 0 continues the document of the past.

    Returns:
        `[B, H, T, D]`.
    """
    length = q.shape[2]
    if past is None and documents is None:
        if window is None or length <= window:
            return _causal(q, k, v, prefix)
        first = _causal(q[:, :, :window], k[:, :, :window], v[:, :, :window], prefix)
        rest = _banded(q[:, :, window:], k, v, prefix, window)
        return torch.cat((first, rest), dim=2)
    if past is None:
        past, past_count = (k[:, :, :0], v[:, :, :0]), torch.zeros(q.shape[0], dtype=torch.int64, device=q.device)
    elif past_count is None:
        raise ValueError("past needs past_count, the number of its real slots in each row; got None")
    elif length == 1:
        keys, values = _with_prefix(torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2), prefix)
        return attend_last(q, keys, values, past[0].shape[2], past_count, documents)
    if documents is None:
        documents = past_count.new_zeros(q.shape[0], length)
    if window is not None:
        front = window - past[0].shape[2]
        past = (F.pad(past[0], (0, 0, front, 0)), F.pad(past[1], (0, 0, front, 0)))
    age = torch.arange(past[0].shape[2], 0, -1, device=q.device)
    past_documents = torch.where(age <= past_count[:, None], 0, -1)
    k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    both = documents, torch.cat((past_documents, documents), dim=1)
    return _blockwise(q, k, v, prefix, *both) if window is None else _banded(q, k, v, prefix, window, both)


def _with_prefix(k: Tensor, v: Tensor, prefix: KeysValues | None) -> KeysValues:
    if prefix is None:
        return k, v
    keys, values = (t.expand(k.shape[0], -1, -1, -1) for t in prefix)
    return torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)


def _causal(q: Tensor, k: Tensor, v: Tensor, prefix: KeysValues | None) -> Tensor:
    """Plain causal attention; every query also attends to the prefix."""
    if prefix is None or prefix[0].shape[2] == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    size, length = prefix[0].shape[2], q.shape[2]
    k, v = _with_prefix(k, v, prefix)
    if length <= size:
        mask = torch.ones(length, size + length, dtype=torch.bool, device=q.device).tril(size)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # with `size` zero queries in front, queries and keys are equally long, so that is_causal replaces a mask
    q = F.pad(q, (0, 0, size, 0))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, size:]


def attend_last(
    q: Tensor, keys: Tensor, values: Tensor, slots: int, past_count: Tensor, documents: Tensor | None = None
) -> Tensor:
    """Attention of one new token to the prefix, the real slots of the past, and itself.

    Args:
        q: `[B, H, 1, D]`.
        keys, values: `[B, H, N + slots + 1, D]`, in the order prefix, past, new token.
        slots: length of the past, all of which is inside the window.
        past_count, documents: as in `attend`.
    """
    seen = torch.arange(slots, 0, -1, device=q.device) <= past_count[:, None]
    if documents is not None:
        seen = seen & (documents == 0)
    seen = F.pad(F.pad(seen, (0, 1), value=True), (keys.shape[2] - slots - 1, 0), value=True)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[:, None, None])


def _banded(
    q: Tensor, k: Tensor, v: Tensor, prefix: KeysValues | None, window: int, both: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Sliding window in blocks of queries. `k` and `v` start `window` slots before `q`; the first slot is not used.

    `both`: the documents of the queries and those of the keys.
    """
    batch, heads, length, width = q.shape
    size = min(window, length)
    blocks = -(-length // size)
    short, span = blocks * size - length, window + size
    if short:
        q, k, v = (F.pad(t, (0, 0, 0, short)) for t in (q, k, v))
    q = q.unflatten(2, (blocks, size)).transpose(1, 2)
    if blocks > 1:  # blocks as long as the window: a query attends to its own block and the one before
        k, v = (t.unflatten(2, (blocks + 1, size)).transpose(1, 2) for t in (k, v))
    prefix_size = 0 if prefix is None else prefix[0].shape[2]

    def spans(tokens: Tensor, i: int, start: int, stop: int) -> Tensor:
        """Keys or values of some blocks `[B * blocks, H, N + span, D]`."""
        parts = [tokens[:, start:stop], tokens[:, start + 1 : stop + 1]] if blocks > 1 else [tokens.unsqueeze(1)]
        if prefix is not None:
            parts.insert(0, prefix[i].unsqueeze(1).expand(batch, stop - start, -1, -1, -1))
        return torch.cat(parts, dim=3).flatten(0, 1)

    row = torch.arange(size, device=q.device)[:, None]
    column = torch.arange(span, device=q.device)
    band = (column > row) & (column <= row + window)
    group = blocks
    if both is not None:
        documents = F.pad(both[0], (0, short), value=-2).view(batch, blocks, size)
        key_documents = F.pad(both[1], (0, short), value=-2).unfold(1, span, size)
        group = max(1, MASK_ELEMENTS // (max(1, batch) * size * (prefix_size + span)))
    outputs = []
    for start in range(0, blocks, group):
        stop = min(start + group, blocks)
        mask = band
        if both is not None:
            same = documents[:, start:stop, :, None] == key_documents[:, start:stop, None, :]
            mask = (same & band).flatten(0, 1).unsqueeze(1)
        mask = F.pad(mask, (prefix_size, 0), value=True)
        out = F.scaled_dot_product_attention(
            q[:, start:stop].flatten(0, 1), spans(k, 0, start, stop), spans(v, 1, start, stop), attn_mask=mask
        )
        outputs.append(out.unflatten(0, (batch, stop - start)))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return out.transpose(1, 2).reshape(batch, heads, blocks * size, width)[:, :, :length]


def _blockwise(
    q: Tensor, k: Tensor, v: Tensor, prefix: KeysValues | None, documents: Tensor, key_documents: Tensor
) -> Tensor:
    """Full attention with documents or a past, in blocks of queries, so that no T x T mask exists."""
    length, slots = q.shape[2], k.shape[2] - q.shape[2]
    prefix_size = 0 if prefix is None else prefix[0].shape[2]
    k, v = _with_prefix(k, v, prefix)
    outputs = []
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        seen = slots + stop
        row = torch.arange(slots + start, seen, device=q.device)[:, None]
        mask = torch.arange(seen, device=q.device) <= row
        mask = mask & (documents[:, start:stop, None] == key_documents[:, None, :seen])
        mask = F.pad(mask, (prefix_size, 0), value=True).unsqueeze(1)
        visible = prefix_size + seen
        outputs.append(
            F.scaled_dot_product_attention(q[:, :, start:stop], k[:, :, :visible], v[:, :, :visible], attn_mask=mask)
        )
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
