"""Turns, spread and accounting of memory, with an artificial clock."""

import contextlib

import torch
from benchmarks.measure import allocations, fold_allocations, in_turns, peak_bytes, ratio, spread

CPU = torch.device("cpu")


def test_candidates_take_turns_and_warm_up_is_not_counted():
    order = []
    ticks = iter(range(1000))
    seconds, failed = in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        CPU,
        repeats=3,
        warmup=1,
        clock=lambda: float(next(ticks)),
    )
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 2
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert failed == {}


def test_what_is_around_a_turn_is_not_counted():
    ticks, seen = iter(range(1000)), []

    @contextlib.contextmanager
    def around(name):
        seen.append(name)
        next(ticks)
        yield
        next(ticks)

    call = lambda: next(ticks)  # noqa: E731
    seconds, _ = in_turns({"a": call}, CPU, 2, 0, clock=lambda: float(next(ticks)), around=around)
    assert seconds == {"a": [2.0, 2.0]}
    assert seen == ["a", "a"]


def test_a_candidate_that_fails_is_named_and_the_others_go_on():
    def breaks():
        raise RuntimeError("no kernel\nlong trace")

    seconds, failed = in_turns({"a": breaks, "b": lambda: None}, CPU, repeats=2)
    assert failed == {"a": "RuntimeError: no kernel"}
    assert list(seconds) == ["b"]
    assert len(seconds["b"]) == 2


def test_results_are_kept_as_they_come():
    kept = []

    def breaks():
        raise RuntimeError("no kernel")

    def keep(found, failed):
        kept.append(({name: len(s) for name, s in found.items()}, dict(failed)))

    calls = {"a": lambda: None, "b": breaks, "c": lambda: None}
    seconds, _ = in_turns(calls, CPU, 2, keep=keep)
    reason = {"b": "RuntimeError: no kernel"}
    assert kept == [({"a": 1}, {}), ({"a": 1, "c": 1}, reason), ({"a": 1, "c": 1}, reason), ({"a": 2, "c": 2}, reason)]
    assert set(seconds) == {"a", "c"}


def test_spread_keeps_every_repeat():
    result = spread([3.0, 1.0, 2.0])
    assert result["repeats"] == [3.0, 1.0, 2.0]
    assert result["median"] == 2.0
    assert result["range"] == [1.0, 3.0]
    assert spread([5.0])["quartiles"] == [5.0, 5.0]


def test_ratio_is_taken_turn_by_turn():
    assert ratio([1.0, 10.0, 1.0], [4.0, 40.0, 2.0]) == {"median": 4.0, "range": [2.0, 4.0]}


def test_allocations_fold_in_time_order():
    assert fold_allocations([(3, -4), (1, 4), (2, 6), (4, 1)]) == (7, 10)


def test_held_memory_is_what_the_graph_keeps():
    x = torch.randn(1000, requires_grad=True)
    result = allocations(lambda: (x.exp() * 2).sin(), CPU)
    # the result of exp, the input of sin for its backward, and the output: 4 KB each
    assert 3 * 4000 <= result["held"] <= 3 * 4096 + 1024
    assert result["peak"] >= result["held"]
    without = allocations(lambda: (x.detach().exp() * 2).sin(), CPU)
    assert without["held"] <= 4096 + 1024


def test_peak_sees_memory_that_is_given_back():
    size = 64 << 20
    result = peak_bytes(lambda: torch.ones(size // 4).sum().item(), CPU)
    assert size * 0.9 <= result["bytes"] <= size * 1.5
