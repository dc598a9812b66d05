"""The chunk loop through `torch.compile`: the same results, and what does not compile runs uncompiled and says why."""

import pytest
import torch
from memory_cases import Case, distance, make, outputs_and_gradients

from titanslab.memory import chunk_compiled, chunk_loop, native
from titanslab.memory.chunk import AS_WRITTEN, Functions
from titanslab.memory.chunked import implementation
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
    """Functions that nobody has called yet, through a backend of torch.compile."""
    functions = [chunk_compiled.Compiled(f) for f in AS_WRITTEN]
    monkeypatch.setattr(chunk_compiled, "FUNCTIONS", Functions(*functions))
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend=backend))
    return functions


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
    assert all(f.compiled is not None and not f.failed for f in functions)
    module, reason = implementation(CPU, torch.float64, 2)
    assert module is chunk_compiled
    assert reason == "no kernel in this test, through torch.compile"


def test_what_does_not_compile_runs_and_says_why(monkeypatch, caplog) -> None:
    def broken(*_):
        raise RuntimeError("no such compiler\nand more")

    uncalled(monkeypatch, broken)
    check(CASES["documents"])
    reason = implementation(CPU, torch.float64, 2)[1]
    assert "through torch.compile, which failed: " in reason
    assert "no such compiler" in reason
    said = [r.getMessage() for r in caplog.records if r.name == chunk_compiled.__name__]
    assert len(said) == len(AS_WRITTEN)
    assert "write_chunk, which runs uncompiled" in said[0]


def test_nothing_is_compiled_unasked(monkeypatch) -> None:
    monkeypatch.delenv("TITANS_COMPILE")
    assert implementation(CPU, torch.float64, 2) == (chunk_loop, "no kernel in this test")
