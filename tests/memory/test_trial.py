"""What `auto` takes on a GPU: a trial of the kernels, what its outcome means, and where it is kept."""

from dataclasses import replace

import pytest
import torch
from triton_cases import DEVICE

from titanslab.memory import MemoryNetwork, choose_backend, op
from titanslab.memory.chunked.op import chunked
from titanslab.memory.gpu import trial, verdict
from titanslab.memory.gpu.verdict import Outcome, Trial, judge

GPU = torch.device("cuda", 0)  # a name: nothing here needs one
SMALL = Trial(str(DEVICE), "float32", 1, 4, True, True, True, 16, 16)
FASTER = Outcome(chunked=2.0, triton=1.0, recurrent=2e-3, triton_step=1e-3, distance=1e-6, distance_step=1e-6)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.setattr(verdict, "cache_folder", lambda: tmp_path)
    monkeypatch.delenv("TITANS_MEASURE", raising=False)
    for remembered in (verdict.verdict, verdict.tried):
        remembered.cache_clear()
    yield
    for remembered in (verdict.verdict, verdict.tried):
        remembered.cache_clear()


@pytest.fixture
def asked(monkeypatch) -> list[Trial]:
    """Trials that are asked for; `outcome` of the list is what each gives."""

    class Asked(list):
        outcome = FASTER

        def __call__(self, one: Trial) -> Outcome:
            self.append(one)
            return self.outcome

    asked = Asked()
    monkeypatch.setattr(verdict, "ask", asked)
    monkeypatch.setattr(verdict, "supported", lambda *_: (True, ""))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    return asked


def test_a_trial_compares_and_times() -> None:
    pytest.importorskip("triton", reason="Triton exists for Linux only", exc_type=ImportError)
    outcome = trial.run(SMALL._replace(chunk_size=4), rows=1, tokens=5, turns=1)
    assert not outcome.error
    assert min(outcome.chunked, outcome.triton, outcome.recurrent, outcome.triton_step) > 0
    assert 0 < outcome.distance < 1e-4
    assert 0 < outcome.distance_step < 1e-4


def broken(part: str):
    """A fused path that is right but for one tensor."""

    def fused(*args):
        y, state, loss = chunked(*args)
        if part == "y":
            y = y * 1.01
        elif part == "nan":
            y = y.index_fill(1, torch.tensor([3]), float("nan")) if y.shape[1] > 1 else y
        elif part == "state" and y.shape[1] == 1:
            state = replace(state, weights=tuple(1.01 * w for w in state.weights))
        elif part == "raises":
            raise RuntimeError("no\nan illegal memory access")
        elif part == "memory":
            raise torch.OutOfMemoryError("out of memory")
        return y, state, loss

    return fused


@pytest.mark.parametrize("part", ["y", "nan", "state"])
def test_a_wrong_kernel_is_not_taken(monkeypatch, part: str) -> None:
    cpu = SMALL._replace(device="cpu")
    monkeypatch.setattr(op, "fused", broken("nothing"))
    assert max(trial.run(cpu, 1, 20, 1)[4:6]) < 1e-4
    monkeypatch.setattr(op, "fused", broken(part))
    found = judge(trial.run(cpu, 1, 20, 1), "float32")
    assert not found.reading
    assert not found.decoding
    assert "wrong in a trial here" in found.reason


def test_what_a_kernel_raises_is_the_reason(monkeypatch) -> None:
    monkeypatch.setattr(op, "fused", broken("raises"))
    outcome = trial.run(SMALL._replace(device="cpu"), 1, 20, 1)
    assert not outcome.passing
    assert "RuntimeError: an illegal memory access" in judge(outcome, "float32").reason
    monkeypatch.setattr(op, "fused", broken("memory"))
    assert trial.run(SMALL._replace(device="cpu"), 1, 20, 1).passing


def test_the_faster_is_taken() -> None:
    assert judge(FASTER, "float32")[:2] == (True, True)
    assert judge(FASTER._replace(triton=3.0), "float32")[:2] == (False, True)
    assert judge(FASTER._replace(triton_step=3.0), "float32")[:2] == (True, False)
    assert judge(FASTER._replace(distance=0.02), "bfloat16").reading
    assert not judge(FASTER._replace(distance=0.02), "float32").reading
    assert "triton 1000.00 ms, chunked 2000.00 ms" in judge(FASTER, "float32").reason


def test_a_trial_is_a_process_of_its_own(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    outcome = verdict.ask(SMALL._replace(device="cpu", depth=3))
    assert "backend 'triton': memories of depth 1 and 2 only" in outcome.error


def test_a_process_that_ends_is_named(monkeypatch) -> None:
    monkeypatch.setattr(verdict.sys, "executable", "/bin/false")
    outcome = verdict.ask(SMALL)
    assert outcome.passing
    assert "ended with 1" in outcome.error


def test_an_outcome_is_kept_for_the_next_process(asked, tmp_path) -> None:
    assert verdict.verdict(SMALL).reading
    verdict.verdict.cache_clear()
    assert verdict.verdict(SMALL).reading
    assert asked == [SMALL]
    (file,) = tmp_path.rglob("trial-*")
    file.write_text(file.read_text()[:20])  # cut off: tried again
    verdict.verdict.cache_clear()
    assert verdict.verdict(SMALL).reading
    assert asked == [SMALL, SMALL]
    verdict.verdict(SMALL._replace(chunk_size=4))
    assert len(asked) == 3
    assert len(list(tmp_path.rglob("trial-*"))) == 2


def test_what_passes_is_not_kept(asked, tmp_path) -> None:
    asked.outcome = Outcome(error="too little memory was free", passing=True)
    assert not verdict.verdict(SMALL).reading
    assert not list(tmp_path.rglob("trial-*"))


def test_whoever_was_first_counts(asked, tmp_path) -> None:
    file = tmp_path / "trial-a.json"
    assert verdict._keep(file, FASTER) == FASTER
    assert verdict._keep(file, FASTER._replace(triton=9.0)) == FASTER


def test_no_trial_where_none_is_allowed(asked, monkeypatch) -> None:
    verdict.verdict(SMALL)
    verdict.verdict.cache_clear()
    monkeypatch.setenv("TITANS_MEASURE", "0")
    found = verdict.verdict(SMALL)
    assert not found.reading
    assert "TITANS_MEASURE=0" in found.reason
    assert asked == [SMALL]


def choose(tokens: int, dtype: torch.dtype = torch.bfloat16, **changes) -> op.BackendChoice:
    return choose_backend(GPU, dtype, tokens, MemoryNetwork(**changes), 64, 16)


def test_auto_on_a_gpu_takes_what_was_measured(asked) -> None:
    name, reason = choose(512)
    assert name == "triton"
    assert "measured here, bfloat16" in reason
    with torch.no_grad():
        assert choose(1).name == "triton"
    assert choose(1).name == "recurrent"  # gradients take the whole walk for it
    assert choose(2).name == "recurrent"
    assert asked == [Trial("cuda:0", "bfloat16", 2, 4, True, True, False, 64, 16)]
    asked.outcome = FASTER._replace(chunked=0.5)
    name, reason = choose(512, grad_clip=1.0)
    assert name == "chunked"
    assert "triton 1000.00 ms, chunked 500.00 ms" in reason


def test_auto_says_what_the_kernels_cannot_run(asked, monkeypatch) -> None:
    monkeypatch.setattr(verdict, "supported", lambda *_: (False, "memories of depth 1 and 2 only, got 4"))
    name, reason = choose(512, depth=4)
    assert name == "chunked"
    assert "no fused kernel: memories of depth 1 and 2 only, got 4" in reason
    assert not asked


def test_a_compiled_caller_takes_it_too(asked) -> None:
    def call(x):
        return x + len(choose_backend(GPU, torch.float32, 512, MemoryNetwork(), 64, 16).name)

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == len("triton")
    assert len(asked) == 1
