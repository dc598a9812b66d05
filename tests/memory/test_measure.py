"""The comparison of `titans info --measure`, its file, and the choice of `auto` from that file."""

import os
from dataclasses import replace

import pytest
import torch
from memory_cases import Case, make

from titanslab.memory import MemoryNetwork, backends, choose_backend, measure, measured
from titanslab.memory.chunked.op import chunked
from titanslab.memory.measured import Measured

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)  # a name alone; no test needs a GPU
NETWORK = MemoryNetwork(depth=1, expansion=2, grad_clip=4.0)
MEMORY = (NETWORK, 8, 4)


@pytest.fixture(autouse=True)
def _own_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TITANS_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "FOUND", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")


@pytest.fixture
def written(monkeypatch):
    """Replaces the compiled loop by the uncompiled one, so that no test compiles."""
    from titanslab.memory.chunked import compiled, loop

    monkeypatch.setattr(compiled, "forward", loop.forward)
    monkeypatch.setattr(compiled, "backward", loop.backward)


@pytest.fixture
def no_kernels(monkeypatch):
    """The fused kernels left out: Triton's interpreter takes seconds."""
    monkeypatch.setattr(measure, "supported", lambda *_: (False, "left out"))


def small(dtype=torch.float32, turns=1) -> measure.Comparison:
    return measure.measure(CPU, dtype, NETWORK, 8, 4, tokens=10, turns=turns)


def test_every_way_is_compared_timed_and_the_fastest_kept(written) -> None:
    found = small()
    assert [c.name for c in found.reading] == ["torch", "compiled", "cpu", "triton"]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # then the fused kernels run in the interpreter
    assert found.decoding[0].name == "recurrent"
    timed = [c for c in found.reading if c.seconds is not None]
    assert [c.name for c in timed] == ["torch", "compiled", "cpu"] + ["triton"] * interpreted
    assert all(c.distance < 1e-5 and not c.reason for c in timed)
    said = found.reading[-1].reason
    assert interpreted or "TRITON_INTERPRET" in said or "not installed" in said
    fastest = min(timed, key=lambda c: c.seconds or 0.0).name
    assert found.best.reading == fastest
    assert f"{fastest} " in found.best.why_reading
    assert measured.read() == measured.FOUND == {measured.key(CPU, torch.float32, *MEMORY): found.best}


def broken(part: str):
    """A chunk loop in which one tensor is wrong."""

    def forward(inputs, state, keep):
        from titanslab.memory.chunked import loop

        y, loss, end, *rest = loop.forward(inputs, state, keep)
        if part == "y":
            y = y * 1.01
        elif part == "nan":
            y = y.index_fill(1, torch.tensor([3]), float("nan"))
        elif part == "state":
            end = [1.01 * e for e in end]
        elif part == "raises":
            raise RuntimeError("first line\nan illegal memory access")
        return y, loss, end, *rest

    return forward


@pytest.mark.parametrize(
    ("part", "said"), [("y", "apart"), ("nan", "apart"), ("state", "apart"), ("raises", "illegal")]
)
def test_a_wrong_way_is_not_taken(monkeypatch, written, no_kernels, part, said) -> None:
    from titanslab.memory.chunked import compiled

    monkeypatch.setattr(compiled, "forward", broken(part))
    bad = next(c for c in small().reading if c.name == "compiled")
    assert bad.seconds is None
    assert said in bad.reason


def test_auto_takes_what_was_measured_for_that_device_dtype_and_shape(monkeypatch) -> None:
    best = Measured("triton", "triton", "measured here: triton 1 ms", "measured here: triton 1 ms")
    measured.add(measured.key(GPU, torch.bfloat16, *MEMORY), best)

    def name(tokens: int, device=GPU, dtype=torch.bfloat16, network=NETWORK) -> str:
        return choose_backend(device, dtype, tokens, network, 8, 4).name

    assert name(512) == "triton"
    assert name(1) == "recurrent"  # the fused step has no backward pass
    with torch.no_grad():
        assert name(1) == "triton"
    assert name(512, dtype=torch.float32) == "chunked"
    assert name(512, device=CPU) == "chunked"
    assert name(512, network=replace(NETWORK, depth=2)) == "chunked"
    assert choose_backend(GPU, torch.float32, 512, NETWORK, 8, 4).reason.endswith("PyTorch operations on cuda")


def test_a_measured_loop_runs_where_chunked_is_named_too(monkeypatch) -> None:
    measured.add(
        measured.key(CPU, torch.float64, MemoryNetwork(), 8, 4), Measured("torch", "recurrent", "because", "so")
    )
    way = backends.choose(CPU, torch.float64, 512, (MemoryNetwork(), 8, 4), "chunked")
    assert (way.backend, way.loop, way.reason) == ("chunked", "torch", "because")


def test_the_ways_agree_on_the_whole_function() -> None:
    """Every loop that a measurement can choose computes the same function."""
    problem = make(Case(tokens=19, chunk_size=4))
    want = problem.run("reference")[0]
    for loop in ("torch", "cpu"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "titanslab.memory.op.chunked", lambda *given, loop=loop: chunked(*given[:-2], loop, given[-1])
            )
            torch.testing.assert_close(problem.run("chunked")[0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": {"reading": "torch"}}', '{"x": 3}'])
def test_an_unreadable_file_is_reported_and_written_again(caplog, text) -> None:
    measured.path().parent.mkdir(parents=True, exist_ok=True)
    measured.path().write_text(text)
    assert measured.read() == {}
    assert "titans info --measure" in caplog.text
    best = Measured("torch", "recurrent", "a", "b")
    measured.add(measured.key(CPU, torch.float32, *MEMORY), best)
    assert list(measured.read().values()) == [best]


@pytest.mark.filterwarnings("ignore")
def test_the_compiled_loop_is_the_loop(monkeypatch, no_kernels) -> None:
    """Compiles with a backend that runs the traced graph, because inductor would take minutes."""
    from titanslab.memory.chunked import compiled, loop
    from titanslab.memory.chunked.equations import AS_WRITTEN, Functions

    functions = Functions(*(torch.compile(f, backend="eager") for f in AS_WRITTEN))
    monkeypatch.setattr(compiled, "forward", lambda *given: loop.forward(*given, functions=functions))
    monkeypatch.setattr(compiled, "backward", lambda *given: loop.backward(*given, functions=functions))
    found = next(c for c in small(torch.float64).reading if c.name == "compiled")
    assert not found.reason
    assert found.distance < 1e-12
