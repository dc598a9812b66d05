"""The chunk loop through `torch.compile`: the same results, and what does not compile runs uncompiled and says why."""

import pytest
import torch
from memory_cases import Case, distance, make, outputs_and_gradients

from titanslab.memory.chunked import compiled as chunk_compiled
from titanslab.memory.chunked import loop as chunk_loop
from titanslab.memory.chunked.equations import AS_WRITTEN, Functions
from titanslab.memory.chunked.op import implementation
from titanslab.memory.cpu import chunked as native
from tolerances import EXACT

CPU = torch.device("cpu")
CASES = {
    "documents": Case(tokens=11, state=True, reset=True, grad_clip=0.5, seed=5),
    "linear": Case(batch=1, tokens=8, depth=1, residual=False, norm=False),
}


@pytest.fixture(autouse=True)
def asked_for(monkeypatch) -> None:
    monkeypatch.setenv("TITANS_COMPILE", "1")
    monkeypatch.setattr(native, "available", lambda *_: (False, "no kernel in this test"))


def uncalled(monkeypatch, backend) -> list[chunk_compiled.Compiled]:
    """Functions that nobody has called yet, through a backend of torch.compile; all take as long."""
    functions = [chunk_compiled.Compiled(f) for f in AS_WRITTEN]
    monkeypatch.setattr(chunk_compiled, "FUNCTIONS", Functions(*functions))
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend=backend))
    monkeypatch.setattr(chunk_compiled, "seconds", lambda ways, *_: dict.fromkeys(ways, 1.0))
    return functions


def as_it_is(graph, inputs):
    return graph


def check(case: Case) -> None:
    truth, got = (outputs_and_gradients(make(case), backend) for backend in ("reference", "chunked"))
    for part in (0, 1):
        for name, want in truth[part].items():
            assert distance(got[part][name], want) < EXACT, name


@pytest.mark.parametrize("name", CASES)
def test_equals_the_token_loop(monkeypatch, name: str) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    functions = uncalled(monkeypatch, counting)
    check(CASES[name])
    assert len(graphs) >= len(functions)
    assert all(f.compiled is not None and not f.why_not for f in functions)
    module, reason = implementation(CPU, torch.float64, 2)
    assert module is chunk_compiled
    assert reason == "no kernel in this test, through torch.compile"


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == chunk_compiled.__name__]


def test_what_does_not_compile_runs_and_says_why(monkeypatch, caplog) -> None:
    def broken(*_):
        raise RuntimeError("no such compiler\nand more")

    uncalled(monkeypatch, broken)
    check(CASES["documents"])
    reason = implementation(CPU, torch.float64, 2)[1]
    assert "through torch.compile, but not write_chunk: " in reason
    assert "no such compiler" in reason
    assert len(said(caplog)) == len(AS_WRITTEN)
    assert "write_chunk is not taken" in said(caplog)[0]


def test_what_is_wrong_is_not_taken(monkeypatch, caplog) -> None:
    def wrong(graph, inputs):
        return lambda *arguments: tuple(2 * t for t in graph(*arguments))

    functions = uncalled(monkeypatch, wrong)
    check(CASES["linear"])
    assert all(f.compiled is None for f in functions)
    assert "apart, 1e-09 is allowed" in said(caplog)[0]


def test_what_it_writes_into_is_compared_too(monkeypatch) -> None:
    functions = uncalled(monkeypatch, as_it_is)
    results, write = [], functions[0]
    monkeypatch.setattr(write, "_results", lambda *a: results.append(a) or type(write)._results(write, *a))
    check(CASES["linear"])
    returned, arguments = results[0]
    got = type(write)._results(write, returned, arguments)
    assert torch.equal(got[-1], arguments[8][-1])
    assert len(got) == len(list(chunk_compiled._tensors(returned))) + 1


def test_what_is_slower_is_not_taken(monkeypatch, caplog) -> None:
    functions = uncalled(monkeypatch, as_it_is)
    monkeypatch.setattr(chunk_compiled, "seconds", lambda *_: {"compiled": 2e-3, "written": 1e-3})
    check(CASES["linear"])
    assert all(f.compiled is None for f in functions)
    assert "it took 2000 us, as it is written 1000 us" in said(caplog)[0]


def test_times_are_of_some_turns_and_one_not_counted() -> None:
    calls = []
    taken = chunk_compiled.seconds({"way": lambda: calls.append(1)}, CPU, chunk_compiled.TURNS)
    assert len(calls) == chunk_compiled.TURNS + 1
    assert 0 < taken["way"] < 1


def test_default_is_on_gpus(monkeypatch) -> None:
    monkeypatch.delenv("TITANS_COMPILE")
    assert chunk_compiled.wanted(torch.device("cuda", 0))
    assert not chunk_compiled.wanted(CPU)
    assert implementation(CPU, torch.float64, 2) == (chunk_loop, "no kernel in this test")
    module, reason = implementation(torch.device("cuda"), torch.float32, 2)
    assert module is chunk_compiled
    assert reason == "PyTorch operations on cuda, through torch.compile"
    monkeypatch.setenv("TITANS_COMPILE", "0")
    assert implementation(torch.device("cuda"), torch.float32, 2) == (chunk_loop, "PyTorch operations on cuda")
