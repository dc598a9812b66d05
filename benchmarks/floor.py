"""The fewest FLOPs and bytes that a memory or an attention layer needs, by formula.

One multiply-add is two FLOPs. Elementwise work (norms, gates, decays) is of lower order and does not count. Work that a
backward pass repeats to save memory counts once.
"""

import itertools
from typing import Any

# Work of forward + backward over that of forward: backward has two products for each one, one per operand.
BACKWARD = 3


def widths(head_dim: int, depth: int, expansion: int) -> list[tuple[int, int]]:
    """`(d_in, d_out)` of each layer of one head's memory."""
    dims = [head_dim] + [expansion * head_dim] * (depth - 1) + [head_dim]
    return list(itertools.pairwise(dims))


def memory_flops(tokens: int, chunk: int, heads: int, head_dim: int, depth: int, expansion: int, batch: int = 1) -> int:
    """Forward FLOPs of writing and reading every token in the exact chunk form.

    Let P be the number of weights of one head, and P_1 that of its first layer. A chunk of C tokens takes
    C (6 P - P_1) + C^2 sum(d_in + d_out) multiply-adds per head: P per token for the keys' forward pass, P - P_1 for
    the gradients down to layer 1, 2 P for the new weights and momentum, 2 P for the reads from weights and momentum,
    and the C^2 term for the two products inside the chunk. At depth 2 the sum is 11 C D E + 2 C^2 (D + E).
    """
    shapes = widths(head_dim, depth, expansion)
    weights, first = sum(i * o for i, o in shapes), shapes[0][0] * shapes[0][1]
    inside = sum(i + o for i, o in shapes)
    full, rest = divmod(tokens, chunk)
    adds = tokens * (6 * weights - first) + (full * chunk**2 + rest**2) * inside
    return 2 * adds * heads * batch


def memory_bytes(tokens: int, heads: int, head_dim: int, depth: int, batch: int = 1, item: int = 4) -> int:
    """Forward bytes that must move: q, k, v and three gates per layer in, y out. The state is taken to stay on chip."""
    return batch * tokens * heads * (4 * head_dim * item + 3 * depth * 4)


def state_traffic(
    tokens: int, chunk: int, heads: int, head_dim: int, depth: int, expansion: int, batch: int = 1
) -> int:
    """Forward bytes of a float32 state that is read and written once per chunk."""
    weights = sum(i * o for i, o in widths(head_dim, depth, expansion))
    return -(-tokens // chunk) * batch * heads * 2 * 2 * weights * 4


def projection_flops(tokens: int, dim: int, inner: int, gates: int, batch: int = 1) -> int:
    """Forward FLOPs of the layer around the memory: projections to q, k, v, output gate, output and gates."""
    return 2 * batch * tokens * dim * (5 * inner + gates)


def attention_flops(tokens: int, dim: int, window: int | None = None, batch: int = 1) -> int:
    """Forward FLOPs of causal attention with its four projections. A window includes the token itself."""
    seen = tokens if window is None else min(window, tokens)
    pairs = seen * (seen + 1) // 2 + (tokens - seen) * seen
    return 2 * batch * (4 * tokens * dim * dim + 2 * pairs * dim)


def attention_bytes(tokens: int, dim: int, batch: int = 1, item: int = 4) -> int:
    """Forward bytes that must move: q, k, v in and y out."""
    return batch * tokens * dim * 4 * item


def fraction(flops: int, bytes_moved: int, seconds: float, flop_rate: float, byte_rate: float) -> dict[str, Any]:
    """The floor in seconds at the measured rates, and its ratio to a measured time."""
    compute, transfer = flops / flop_rate, bytes_moved / byte_rate
    floor = max(compute, transfer)
    return {
        "flops": flops,
        "bytes": bytes_moved,
        "compute_seconds": compute,
        "transfer_seconds": transfer,
        "floor_seconds": floor,
        "bound": "compute" if compute >= transfer else "transfer",
        "flops_per_second": flops / seconds,
        "fraction_reached": floor / seconds,
    }
