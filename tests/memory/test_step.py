"""The compiled step for one token: its results equal the token loop's, and it writes no input in place."""

import pytest
import torch
from memory_cases import Case, distance, make

from titanslab.memory import NeuralMemory, op
from titanslab.memory.cpu import build, step
from tolerances import EXACT, FLOAT32_FLOOR

CASES = {
    "plain": Case(tokens=1, state=True),
    "no state": Case(tokens=1),
    "odd widths": Case(tokens=1, state=True, head_dim=5, heads=1, expansion=3, per_layer=True),
    "depth 1": Case(tokens=1, state=True, depth=1, head_dim=9),
    "depth 3": Case(tokens=1, state=True, depth=3, per_layer=True),
    "linear": Case(tokens=1, state=True, depth=1, norm=False, residual=False),
    "clipped": Case(tokens=1, state=True, grad_clip=0.5, theta=0.5),
    "chunk 1": Case(tokens=1, state=True, chunk_size=1),
    "chunk ends in some rows": Case(tokens=1, state=True, batch=7, chunk_size=2),
    "to the start": Case(tokens=1, state=True, forget_to="start", chunk_size=2, batch=3),
    "to the start, depth 3": Case(tokens=1, state=True, forget_to="start", depth=3, per_layer=True, expansion=3),
    "many weights": Case(tokens=1, state=True, batch=3, head_dim=64, heads=8, expansion=8),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_the_token_loop(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = step.step
    monkeypatch.setattr(op, "step", lambda *args: calls.append(1) or real(*args))
    truth, problem = make(CASES[name]), make(CASES[name].with_(dtype=dtype))
    before = None if problem.state is None else problem.state.map(torch.clone).tensors()
    with torch.no_grad():
        y, state, loss = problem.run("auto", return_loss=True)
    want, want_state, want_loss = truth.run("reference", return_loss=True)
    assert calls
    tolerance = EXACT if dtype == torch.float64 else 10 * FLOAT32_FLOOR
    assert distance(y, want) < tolerance
    assert distance(loss, want_loss) < tolerance
    for key, tensor in want_state.tensors().items():
        assert distance(state.tensors()[key], tensor) < tolerance, key
    if before is not None and problem.state is not None:
        assert all(torch.equal(t, before[key]) for key, t in problem.state.tensors().items())


def test_gradients_and_padding_take_the_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "step", lambda *args: pytest.fail("took the compiled step"))
    make(Case(tokens=1, state=True)).run("auto")[0].sum().backward()
    with torch.no_grad():
        make(Case(tokens=1, state=True)).run("auto", mask=torch.tensor([[True], [False]]))
        make(Case(tokens=2, state=True)).run("auto")


def test_a_mask_that_hides_nothing_is_none() -> None:
    torch.manual_seed(0)
    memory = NeuralMemory(24, 3)
    with torch.no_grad():
        _, state = memory(torch.randn(2, 5, 24))
        x = torch.randn(2, 1, 24)
        plain, masked = memory(x, state), memory(x, state, mask=torch.ones(2, 1, dtype=torch.bool))
        half = memory(x, state, mask=torch.tensor([[True], [False]]))[0]
        read, read_masked = (memory.retrieve(x, state, mask=m)[0] for m in (None, torch.ones(2, 1, dtype=torch.bool)))
    assert torch.equal(plain[0], masked[0])
    assert all(torch.equal(t, masked[1].tensors()[k]) for k, t in plain[1].tensors().items())
    assert torch.equal(read, read_masked)
    torch.testing.assert_close(half[0], plain[0][0])
    assert half[1].count_nonzero() == 0


def test_structures_agree_in_size() -> None:
    import ctypes

    handle = build.load(torch.float32, "step").handle
    assert handle.titans_arguments_size() == ctypes.sizeof(step.StepArguments)
