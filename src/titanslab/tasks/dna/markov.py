"""Order-k Markov models of nucleotides, the baseline for bits per base: counts of words, frozen or adaptive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_ORDER = 24  # bases of context whose number, with the next base, fits in 64 bits
DENSE_ORDER = 10  # up to which every word has a place in a table, 32 MB at most
ALPHAS = tuple(2.0**i for i in range(-6, 9))
KT = 0.5  # alpha of the estimator of Krichevsky and Trofimov


class MarkovModel:
    """Counts of the words of `order + 1` bases in sequences, and the bits that they give other sequences.

    A base x after the context c has the probability (n(cx) + alpha) / (n(c) + 4 alpha). Words with N do not count. The
    first `order` bases of a sequence and those whose context holds an N have 1/4. N itself is not scored.

    Args:
        order: bases of context, from 0 to 24.
        sequences: ids of bases, integers `[T]` each, values above 3 for N.
        both_strands: count the reverse complement too.
    """

    def __init__(self, order: int, sequences: Sequence[np.ndarray], both_strands: bool = False) -> None:
        if not 0 <= order <= MOST_ORDER:
            raise ValueError(f"order must be from 0 to {MOST_ORDER}, got {order}")
        self.order = order
        rows = [np.asarray(ids) for ids in sequences]
        if both_strands:
            rows += [np.where(ids < 4, 3 - ids.astype(np.int64), ids)[::-1] for ids in rows]
        words = [w[w >= 0] for w in (word_numbers(ids, order + 1) for ids in rows)]
        every = np.concatenate(words) if words else np.empty(0, np.int64)
        if order <= DENSE_ORDER:
            self._counts = _Table(np.bincount(every, minlength=4 ** (order + 1)))
            self._totals = _Table(self._counts.values.reshape(-1, 4).sum(1))
        else:
            found, counts = np.unique(every, return_counts=True)
            starts = np.flatnonzero(np.diff(found >> 2, prepend=-1))
            totals = np.add.reduceat(counts, starts) if len(starts) else counts
            self._counts, self._totals = _Table(counts, found), _Table(totals, found[starts] >> 2)

    def bits(self, ids: np.ndarray, alpha: float = KT, adaptive: bool = False) -> np.ndarray:
        """The bits of each base of a sequence, float64 `[T]`, NaN at N.

        Args:
            ids: integers `[T]`.
            adaptive: a base is scored, then counted, as a model that goes on learning would: the counts of a base hold
                those of the bases of this sequence before it.
        """
        return self.seen(ids, adaptive).bits(alpha)

    def seen(self, ids: np.ndarray, adaptive: bool = False) -> Seen:
        """The counts on which the bits of a sequence depend, for any alpha; arguments as in `bits`."""
        ids = np.asarray(ids)
        words = word_numbers(ids, self.order + 1)
        known = np.flatnonzero(words >= 0)
        found = words[known]
        words_seen, contexts_seen = self._counts[found], self._totals[found >> 2]
        if adaptive:
            words_seen, contexts_seen = words_seen + _earlier(found), contexts_seen + _earlier(found >> 2)
        return Seen(ids < 4, known + self.order, words_seen, contexts_seen)


class Seen(NamedTuple):
    """Counts for the bases of a sequence of length T.

    Args:
        scored: bool `[T]`, False at N. places: `[N]` of the bases with a whole context.
        words, contexts: `[N]`, how often the context with the base, and the context, was seen.
    """

    scored: np.ndarray
    places: np.ndarray
    words: np.ndarray
    contexts: np.ndarray

    def bits(self, alpha: float) -> np.ndarray:
        """The bits of each base, float64 `[T]`, NaN at N."""
        bits = np.where(self.scored, 2.0, np.nan)
        bits[self.places] = -np.log2((self.words + alpha) / (self.contexts + 4 * alpha))
        return bits


class _Table:
    """Values by key, 0 for a key without one: all keys from 0, or sorted ones."""

    def __init__(self, values: np.ndarray, keys: np.ndarray | None = None) -> None:
        self.values, self.keys = values, keys

    def __getitem__(self, wanted: np.ndarray) -> np.ndarray:
        if self.keys is None:
            return self.values[wanted]
        if not len(self.keys):
            return np.zeros(len(wanted), np.int64)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, self.values[places], 0)


def markov_bits(
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    orders: Sequence[int] = range(13),
    *,
    held_out: float = 0.1,
    both_strands: bool = False,
    adaptive: bool = False,
) -> dict[int, dict[str, float]]:
    """Bits per base of the test sequences for each order, with the alpha of `ALPHAS` that is best on held-out bases.

    Args:
        train, test: ids of bases, integers `[T]` each.
        held_out: share of the end of each training sequence on which alpha is chosen; the counts of the model that is
            tested hold all of it.

    Returns:
        For each order "bits" per base and "alpha".

    Raises:
        ValueError: there is no base to train on or to score.
    """
    if not any(len(ids) for ids in train):
        raise ValueError("train holds no base")
    cuts = [round(len(ids) * (1 - held_out)) for ids in train]
    before = [ids[:cut] for ids, cut in zip(train, cuts, strict=True)]
    after = [ids[cut:] for ids, cut in zip(train, cuts, strict=True)]
    result = {}
    for order in orders:
        part = MarkovModel(order, before, both_strands)
        seen = [part.seen(ids, adaptive) for ids in after]
        means = [_mean([counts.bits(alpha) for counts in seen]) for alpha in ALPHAS]
        alpha = ALPHAS[int(np.argmin(means))]
        whole = MarkovModel(order, train, both_strands)
        result[order] = {"bits": _mean([whole.bits(ids, alpha, adaptive) for ids in test]), "alpha": alpha}
    return result


def word_numbers(ids: np.ndarray, size: int) -> np.ndarray:
    """The number of each word of `size` bases, base 4, int64 `[T - size + 1]`; -1 where a word holds an N."""
    ids = np.asarray(ids)
    count = len(ids) - size + 1
    if count <= 0:
        return np.empty(0, np.int64)
    number = np.zeros(count, np.int64)
    for place in range(size):
        number = 4 * number + np.minimum(ids[place : place + count], 3)
    unknown = np.concatenate([[0], np.cumsum(ids > 3)])
    number[unknown[size:] > unknown[:count]] = -1
    return number


def _earlier(keys: np.ndarray) -> np.ndarray:
    """For each key the number of equal keys before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ranks = np.arange(len(keys)) - np.repeat(first, np.diff([*first, len(keys)]))
    earlier = np.empty(len(keys), np.int64)
    earlier[order] = ranks
    return earlier


def _mean(rows: Sequence[np.ndarray]) -> float:
    count = sum(int(np.isfinite(row).sum()) for row in rows)
    if not count:
        raise ValueError("there is no base to score")
    return float(sum(np.nansum(row) for row in rows) / count)
