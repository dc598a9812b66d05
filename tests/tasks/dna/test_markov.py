"""Order-k Markov models against a loop over the bases, and what they must give for known sources."""

import numpy as np
import pytest

from titanslab.tasks.dna import markov
from titanslab.tasks.dna.markov import MarkovModel, markov_bits, word_numbers


def by_loop(train, test, order, alpha, adaptive):
    """Bits of each base by counting in dicts."""
    counts = {}

    def count(ids, place):
        word = tuple(ids[place - order : place + 1])
        if place >= order and max(word) < 4:
            counts.setdefault(word[:-1], [0] * 4)[word[-1]] += 1

    for ids in train:
        for place in range(len(ids)):
            count(ids, place)
    bits = []
    for place, base in enumerate(test):
        context = tuple(test[place - order : place]) if place >= order else None
        if base > 3:
            bits.append(np.nan)
        elif context is None or max(context, default=0) > 3:
            bits.append(2.0)
        else:
            seen = counts.get(context, [0] * 4)
            bits.append(-np.log2((seen[base] + alpha) / (sum(seen) + 4 * alpha)))
        if adaptive:
            count(test, place)
    return np.array(bits)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dense", [10, -1])
def test_bits_are_those_of_a_loop(order, adaptive, dense, monkeypatch):
    monkeypatch.setattr(markov, "DENSE_ORDER", dense)
    rng = np.random.default_rng(order)
    train = [rng.choice(5, 300, p=[0.4, 0.2, 0.2, 0.15, 0.05]).astype(np.uint8) for _ in range(2)]
    test = rng.choice(5, 200, p=[0.4, 0.2, 0.2, 0.15, 0.05])
    model = MarkovModel(order, train)
    assert np.allclose(model.bits(test, 0.3, adaptive), by_loop(train, test, order, 0.3, adaptive), equal_nan=True)


def test_both_strands_count_the_reverse_complement():
    model = MarkovModel(1, [np.array([0, 0, 1])], both_strands=True)  # AAC and GTT
    seen = model.seen(np.array([0, 0, 1, 0, 2, 3, 3]))
    assert seen.words.tolist() == [1, 1, 0, 0, 1, 1]
    assert seen.contexts.tolist() == [2, 2, 0, 2, 1, 1]


def test_words_with_an_n_have_no_number():
    assert word_numbers(np.array([0, 1, 4, 3, 2, 1]), 2).tolist() == [1, -1, -1, 14, 9]
    assert word_numbers(np.array([0]), 2).tolist() == []


def test_the_order_of_the_source_is_the_best_and_alpha_is_chosen_on_held_out_bases():
    rng = np.random.default_rng(0)
    table = rng.dirichlet([0.5] * 4, size=16)
    ids = [0, 1]
    draws = rng.random(20_000)
    for draw in draws:
        ids.append(int(np.searchsorted(table[4 * ids[-2] + ids[-1]].cumsum(), draw)))
    ids = np.minimum(np.array(ids), 3)
    found = markov_bits([ids[:15_000]], [ids[15_000:]], range(7))
    assert min(found, key=lambda order: found[order]["bits"]) == 2
    entropy = -(table * np.log2(table)).sum(1).mean()
    assert abs(found[2]["bits"] - entropy) < 0.2
    assert found[6]["bits"] < 2.0
    uniform = markov_bits([rng.integers(0, 4, 4000)], [rng.integers(0, 4, 4000)], [8])
    assert 2.0 <= uniform[8]["bits"] < 2.02  # a small alpha would cost more than two bits a base


def test_an_adaptive_model_learns_the_test_sequence():
    rng = np.random.default_rng(1)
    unit = rng.integers(0, 4, 500)
    test = np.tile(unit, 6)
    frozen = markov_bits([rng.integers(0, 4, 2000)], [test], [8])[8]["bits"]
    adaptive = markov_bits([np.tile(rng.integers(0, 4, 300), 8)], [test], [8], adaptive=True)[8]["bits"]
    assert frozen > 1.9
    assert adaptive < 1.0


def test_faults_are_named():
    with pytest.raises(ValueError, match="train holds no base"):
        markov_bits([], [np.array([0])])
    with pytest.raises(ValueError, match="order must be from 0 to 24, got 25"):
        MarkovModel(25, [])
    with pytest.raises(ValueError, match="there is no base to score"):
        markov_bits([np.array([0, 1, 2, 3] * 9)], [np.array([4, 4])], [1])
