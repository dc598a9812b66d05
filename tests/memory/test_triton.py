"""Compares the fused kernels with the token loop in float64, on uneven shapes. Uninitialised memory holds NaN."""

import pytest
import torch
from memory_cases import Case, distance, make, outputs_and_gradients
from triton_cases import DEVICE, check, on_device

from titanslab.memory import MemoryState
from titanslab.memory.gpu import plan
from titanslab.memory.reference import Tokens, reference
from tolerances import EXACT, FLOAT32_FLOOR, LOW_PRECISION_FACTOR

pytest.importorskip("triton", reason="Triton exists for Linux only", exc_type=ImportError)

# one row and one head, because the interpreter takes a fifth of a second per chunk, row and head
SMALL = Case(batch=1, heads=1, head_dim=16, chunk_size=16, tokens=17, per_layer=True)
CASES = {
    "one-token": SMALL.with_(tokens=1, heads=3, state=True),
    "fifteen": SMALL.with_(tokens=15, heads=3, depth=1),
    "aligned": SMALL.with_(tokens=32, per_layer=False),
    "width-60": SMALL.with_(tokens=15, head_dim=60),
    "width-32": SMALL.with_(head_dim=32, expansion=4, state=True),
    "linear": SMALL.with_(depth=1, state=True, seed=2),
    "linear-bare": SMALL.with_(depth=1, state=True, norm=False, residual=False, chunk_size=4, tokens=9),
    "no-norm": SMALL.with_(norm=False, grad_clip=0.5, tokens=16),
    "no-residual": SMALL.with_(residual=False, grad_clip=0.5, tokens=16),
    "online": SMALL.with_(chunk_size=1, tokens=5),
    "odd-chunk": SMALL.with_(chunk_size=20, tokens=41, state=True),
    "chunk-32": SMALL.with_(chunk_size=32, tokens=63, state=True),
    "chunk-64": SMALL.with_(chunk_size=64, tokens=63),
    "padding": SMALL.with_(batch=2, chunk_size=8, state=True, mask=True),
    "documents": SMALL.with_(chunk_size=8, reset=True, initial=True, depth=1, seed=3),
    "everything": SMALL.with_(
        batch=2, chunk_size=8, state=True, mask=True, reset=True, initial=True, grad_clip=0.5, seed=3
    ),
}
# forgetting to M_0
CASES |= {
    f"{name}-to-start": CASES[name].with_(forget_to="start")
    for name in ("one-token", "linear-bare", "no-norm", "documents", "everything")
}


@pytest.fixture(autouse=True)
def poison(monkeypatch) -> None:
    """Fills uninitialised memory with NaN."""

    def poisoned(make):
        def call(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return call

    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture
def in_blocks(monkeypatch) -> None:
    """Small tiles, so that there are several blocks of columns, read blocks and groups."""
    monkeypatch.setattr(plan, "FORWARD_COLUMNS", 16 * 16)
    monkeypatch.setattr(plan, "BACKWARD_COLUMNS", 16 * 16)
    monkeypatch.setattr(plan, "BLOCK_TOKENS", 8)
    monkeypatch.setattr(plan, "GROUP_TOKENS", 16)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_token_loop(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize(("depth", "forget_to"), [(1, "zero"), (2, "zero"), (2, "start")])
def test_state_in_blocks_and_kept_states(depth: int, forget_to: str, in_blocks) -> None:
    case = SMALL.with_(depth=depth, tokens=20, chunk_size=4, state=True, reset=True, seed=4, forget_to=forget_to)
    check(case)


def test_float32_loses_no_more_than_eager() -> None:
    case = SMALL.with_(tokens=33, theta=0.01)
    truth = outputs_and_gradients(make(case), "reference")
    eager = outputs_and_gradients(make(case.with_(dtype=torch.float32)), "reference")
    fast = outputs_and_gradients(on_device(make(case.with_(dtype=torch.float32))), "triton")
    for part in (0, 1):
        for name, want in truth[part].items():
            allowed = LOW_PRECISION_FACTOR * distance(eager[part][name], want) + FLOAT32_FLOOR
            assert distance(fast[part][name].cpu(), want) < allowed, name


def test_bfloat16_loses_no_more_than_eager() -> None:
    problem = make(SMALL.with_(tokens=33, per_layer=False, theta=0.01))
    halves = {n: problem.leaves[n].detach().bfloat16() for n in "qkv"}
    problem.leaves |= {n: t.double() for n, t in halves.items()}
    want, want_state = problem.run("reference")
    low = {n: t.detach().bfloat16() for n, t in problem.leaves.items()}
    params = problem.params.__class__(
        tuple(w.bfloat16() for w in problem.params.weights),
        problem.params.norm_weight.bfloat16(),
        problem.params.norm_bias.bfloat16(),
    )
    gates = [tuple(low[n][..., None] for n in ("theta", "eta", "alpha"))] * 2
    start = MemoryState.initial(params, 1)
    given = Tokens(low["q"], low["k"], low["v"], gates, None, None)
    eager, _, _ = reference(given, problem.network, params, start, start, 16)
    problem.leaves |= halves
    got, state = on_device(problem).run("triton")
    assert got.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for n, t in state.tensors().items() if n != "offset")
    assert distance(got.cpu(), want) < LOW_PRECISION_FACTOR * distance(eager, want)
    for name, tensor in want_state.tensors().items():
        assert distance(state.tensors()[name].cpu(), tensor) < 2 * torch.finfo(torch.bfloat16).eps, name


def test_bfloat16_gradients_have_the_inputs_dtypes() -> None:
    problem = make(SMALL.with_(tokens=16))
    want = outputs_and_gradients(problem, "reference")[1]
    problem = make(SMALL.with_(tokens=16))
    for name in "qkv":
        problem.leaves[name] = problem.leaves[name].detach().bfloat16().requires_grad_()
    got = outputs_and_gradients(on_device(problem), "triton")[1]
    for name, gradient in want.items():
        assert got[name].dtype == problem.leaves[name].dtype
        assert distance(got[name].cpu(), gradient) < 0.05, name


def pieces(problem, cuts: list[int]):
    """Outputs and final state of one call for each piece of the tokens."""
    leaves, mask, reset, state = dict(problem.leaves), problem.mask, problem.reset, problem.state
    ys, losses = [], []
    for first, last in zip([0, *cuts], [*cuts, leaves["q"].shape[1]], strict=True):
        for name in ("q", "k", "v", "theta", "eta", "alpha"):
            problem.leaves[name] = leaves[name][:, first:last]
        y, state, loss = problem.run(
            "triton", state=state, mask=mask[:, first:last], reset=reset[:, first:last], return_loss=True
        )
        ys.append(y)
        losses.append(loss)
    return torch.cat(ys, 1), torch.cat(losses, 1), state


@pytest.mark.parametrize(("depth", "forget_to"), [(1, "zero"), (2, "zero"), (2, "start")])
@pytest.mark.parametrize("cuts", [[3, 8, 9], list(range(1, 10))], ids=["pieces", "decode"])
def test_split_anywhere_is_the_whole(depth: int, forget_to: str, cuts: list[int]) -> None:
    case = SMALL.with_(tokens=10, depth=depth, chunk_size=4, state=True, mask=True, reset=True, initial=True)
    case = case.with_(batch=2, grad_clip=0.5, seed=6, forget_to=forget_to)
    dtype, limit = (torch.float64, EXACT) if DEVICE.type == "cpu" else (torch.float32, 1e-4)
    with torch.no_grad():
        *whole, state = make(case).run("reference", return_loss=True)
        y, loss, end = pieces(on_device(make(case.with_(dtype=dtype))), cuts)
        y_whole, state, loss_whole = whole[0], whole[1], state
    assert distance(y.cpu(), y_whole) < limit
    assert distance(loss.cpu(), loss_whole) < limit
    for name, tensor in state.tensors().items():
        assert distance(end.tensors()[name].cpu(), tensor) < limit, name


def test_same_call_twice_is_bitwise_equal() -> None:
    case = SMALL.with_(dtype=torch.float32, state=True)
    first, second = (outputs_and_gradients(on_device(make(case)), "triton") for _ in range(2))
    assert all(torch.equal(first[p][n], second[p][n]) for p in (0, 1) for n in first[p])


def test_raises_with_the_limit_and_what_to_use() -> None:
    for changes, limit in (
        ({"depth": 3}, "depth 1 and 2"),
        ({"head_dim": 136, "depth": 1}, "at most 128"),
        ({"head_dim": 128, "expansion": 9}, "at most 1024"),
        ({"chunk_size": 65}, "at most 64"),
        ({"head_dim": 72, "chunk_size": 33, "depth": 1}, "at most 32 tokens"),
    ):
        problem = on_device(make(SMALL.with_(tokens=1, **changes)))
        with pytest.raises(RuntimeError, match=f"{limit}.*use 'chunked'"):
            problem.run("triton")


def test_cpu_without_the_interpreter_raises(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = make(SMALL)
    with pytest.raises(RuntimeError, match="on the CPU"):
        problem.run("triton")
    runs, reason = plan.supported(torch.device("cpu"), torch.float32, problem.network, 16, 16)
    assert not runs
    assert "TRITON_INTERPRET" in reason
