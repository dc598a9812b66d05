"""The compiled kernel: it is built once, refused with a reason, and leaves the caller's settings unchanged."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from memory_cases import Case, distance, loss_of_precision, make, outputs_and_gradients, worst

import titanslab.memory.chunked.op as chunked_module
from titanslab.memory import MemoryNetwork, NeuralMemory, backends
from titanslab.memory import layer as module
from titanslab.memory.autograd import kept_states
from titanslab.memory.backends import cpu_kernel, takes_features
from titanslab.memory.conv import short_conv
from titanslab.memory.cpu import build, features, reuse
from titanslab.memory.cpu import chunked as native
from titanslab.memory.cpu.features import convolve, norm_and_gate
from titanslab.memory.padding import Padding
from tolerances import EXACT

MEMORY = (MemoryNetwork(), 16, 16)


def forget_kernels() -> None:
    build.load.cache_clear()
    cpu_kernel.cache_clear()


def test_this_machine_compiles_it() -> None:
    fits, reason = cpu_kernel(False, 2)
    assert fits, reason


def test_a_changed_file_compiles_anew(monkeypatch, tmp_path) -> None:
    """The name of a compiled kernel depends on all files from which it is built."""
    shutil.copytree(build.SOURCE, tmp_path / "source")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "source")
    names = [build._digest("g++", "float")]
    for path in sorted(build.SOURCE.iterdir()):
        assert set(re.findall(r'#include "(.+)"', path.read_text())) <= set(os.listdir(build.SOURCE))
        path.write_text(path.read_text() + "// changed")
        names.append(build._digest("g++", "float"))
    assert len(set(names)) == len(names) > 3


def test_no_compiler_falls_back_and_says_so(monkeypatch) -> None:
    forget_kernels()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    try:
        way = backends.choose(torch.device("cpu"), torch.float32, 512, MEMORY)
        assert (way.backend, way.loop) == ("chunked", "torch")
        assert "no C++ compiler" in way.reason
        make(Case(dtype=torch.float32)).run("chunked")
    finally:
        forget_kernels()


def test_a_compiler_that_fails_is_no_error(monkeypatch, tmp_path) -> None:
    forget_kernels()
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TITANS_CACHE", str(tmp_path))
    try:
        way = backends.choose(torch.device("cpu"), torch.float32, 512, MEMORY)
        assert (way.backend, way.loop) == ("chunked", "torch")
        assert "did not compile" in way.reason
        assert not list(tmp_path.rglob("*.so"))
    finally:
        forget_kernels()


def test_structures_agree_in_size() -> None:
    import ctypes

    handle = build.load(torch.float32).handle
    assert handle.titans_arguments_size() == ctypes.sizeof(native.Arguments)
    assert build.load(torch.float32, "lanes").handle.titans_arguments_size() == ctypes.sizeof(native.Arguments)
    handle = build.load(torch.float32, "features").handle
    assert handle.titans_arguments_size() == ctypes.sizeof(features.FeatureArguments)
    assert handle.titans_gate_arguments_size() == ctypes.sizeof(features.GateArguments)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_kept_activations_are_what_backward_would_compute(monkeypatch, clip) -> None:
    """They are equal bit for bit. Without a backward, in short chunks, and above the limit of bytes none are kept."""
    case = Case(chunk_size=40, tokens=120, depth=3, grad_clip=clip, per_layer=True, theta=0.002)
    kept = []
    forward = native.forward

    def spy(*arguments):
        results = forward(*arguments)
        kept.append(len(results[4]) - case.depth)
        return results

    new_empty, lend = torch.Tensor.new_empty, native.lend

    def poisoned(self, *shape, **options):
        made = new_empty(self, *shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(native, "forward", spy)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    monkeypatch.setattr(native, "lend", lambda shape, dtype: lend(shape, dtype).fill_(float("nan")))
    outputs, gradients = outputs_and_gradients(make(case), "chunked")
    with torch.no_grad():
        make(case).run("chunked")
    make(case.with_(chunk_size=20)).run("chunked")
    monkeypatch.setattr(native, "KEEP_BYTES", 0)
    again, others = outputs_and_gradients(make(case), "chunked")
    assert kept == [1, 0, 0, 0]
    assert all(torch.equal(outputs[name], again[name]) for name in outputs)
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def fading(kind: str, case: Case):
    """The problem of `case` with gates of one kind: momentum fades within a chunk, lasts, or ends."""
    problem, g = make(case), torch.Generator().manual_seed(case.seed)

    def draw() -> torch.Tensor:
        return torch.rand(problem.leaves["eta"].shape, generator=g, dtype=torch.float64)

    some = (draw() < 0.1).to(torch.float64)
    eta = {  # "negative" is no value of our gates, but the equations allow it
        "fades": 0.1 + 0.2 * draw(),
        "none": 0 * draw(),
        "tiny": 1e-6 * draw(),
        "lasts": 0.9 + 0.1 * draw(),
        "ends": (1 - some) * (0.3 + 0.2 * draw()),
        "holds": some + (1 - some) * 0.2 * draw(),
        "forgotten": 0.2 * draw(),
        "idle": 0.3 * draw(),
        "negative": -0.2 - 0.3 * draw(),
    }[kind]
    alpha = some * 0.999 if kind == "forgotten" else 0.01 * draw()
    theta = case.theta * draw() * (some if kind == "idle" else 1)
    for name, gate in {"theta": theta, "eta": eta, "alpha": alpha}.items():
        problem.leaves[name] = gate.to(case.dtype).requires_grad_()
    return problem


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("kind", ["fades", "none", "tiny", "lasts", "ends", "holds", "forgotten", "idle", "negative"])
def test_momentum_that_has_faded_is_left_out_to_rounding(kind, per_layer) -> None:
    """Compares outputs and all gradients, also those of etas of 0, which must not be left out."""
    case = Case(batch=1, heads=1, chunk_size=64, tokens=128, theta=0.002, per_layer=per_layer, state=True, depth=2)
    for at in (case, case.with_(chunk_size=48, tokens=110, depth=3, mask=True, reset=True, initial=True)):
        (outputs, gradients), (truth, slopes) = (
            outputs_and_gradients(fading(kind, at), backend) for backend in ("chunked", "reference")
        )
        errors = {n: distance(outputs[n], truth[n]) for n in truth}
        # relative to the size of each gradient, because that of eta is small
        errors |= {n: loss_of_precision(gradients[n], slopes[n]) for n in slopes if slopes[n].any()}
        assert max(errors.values()) < EXACT, (at, errors)


def test_float32_is_as_exact_where_momentum_fades() -> None:
    case = Case(batch=1, heads=2, chunk_size=64, tokens=192, theta=0.002, dtype=torch.float32)
    truth, slopes = outputs_and_gradients(fading("fades", case.with_(dtype=torch.float64)), "reference")
    outputs, gradients = outputs_and_gradients(fading("fades", case), "chunked")
    errors = {n: loss_of_precision(t, {**truth, **slopes}[n]) for n, t in {**outputs, **gradients}.items() if t.any()}
    assert max(errors.values()) < 1e-5, errors


def test_lent_memory_comes_back_when_nobody_holds_it(monkeypatch) -> None:
    monkeypatch.setattr(reuse, "_free", {})
    monkeypatch.setattr(reuse, "FREE_BYTES", 1000)
    monkeypatch.setattr(reuse, "LARGE_BYTES", 400)
    first = reuse.lend((10, 10), torch.float32)
    place = first.data_ptr()
    view = first[2:].view(-1)
    del first
    second = reuse.lend((10, 10), torch.float32)
    assert second.data_ptr() != place
    del view
    assert reuse.unused_bytes() == 400
    third = reuse.lend((100,), torch.float32)
    assert third.data_ptr() == place
    del second, third
    assert reuse.unused_bytes() == 800
    reuse.lend((99,), torch.float32)  # small buffers are not kept
    assert reuse.unused_bytes() == 800
    reuse.lend((150,), torch.float32)  # the longest unused is freed first
    assert reuse.unused_bytes() == 600
    reuse.lend((251,), torch.float32)
    assert reuse.unused_bytes() <= 1000
    reuse.release()
    assert reuse.unused_bytes() == 0


def test_memory_still_lent_at_the_end_is_no_error() -> None:
    code = (
        "import torch; from titanslab.memory import NeuralMemory; m = NeuralMemory(64, 2, chunk_size=64, depth=2); "
        "y = m(torch.randn(2, 1024, 64))[0]; m.y = y; m.z = m"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("tokens", [1, 7, 16, 29, 50])
@pytest.mark.parametrize("chunk_size", range(1, native.SHORT_CHUNK + 1))
def test_short_chunks_are_the_token_loops(chunk_size, tokens) -> None:
    """Several chunks form a block; calls begin and end inside chunks, documents begin and end anywhere."""
    case = Case(chunk_size=chunk_size, tokens=tokens, heads=1, state=True, seed=100 * chunk_size + tokens, theta=0.002)
    for ragged in (case, case.with_(mask=True, reset=True, initial=True, depth=3, expansion=1)):
        errors = worst(ragged, "chunked")
        assert max(errors.values()) < EXACT, (ragged, errors)


def test_a_block_of_short_chunks_has_no_more_than_it_may() -> None:
    lanes = build.load(torch.float32).handle.titans_lanes()
    sizes = {chunk: native.block_size(chunk) for chunk in (1, 2, 3, 5, 8, 9, 16, 40)}
    short = [chunk for chunk in sizes if chunk <= native.SHORT_CHUNK and chunk < lanes]
    assert short[:3] == [1, 2, 3]
    assert {c: sizes[c] for c in short} == {c: native.BLOCK // c * c for c in short}
    assert all(size == chunk for chunk, size in sizes.items() if chunk not in short)


@pytest.mark.parametrize(("chunk", "keep", "kept"), [(16, True, 2), (32, True, 3), (32, False, 2)])
def test_the_op_is_registered_as_it_behaves(chunk, keep, kept) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 96, 2, 8, requires_grad=True) for _ in range(3))
    gates = 0.1 * torch.rand(3, 2, 1, 96, 2)
    state = [0.1 * torch.randn(2, 2 * rows, columns) for rows, columns in ((8, 16), (16, 8))]
    norm = [torch.ones(2, 8), torch.zeros(2, 8)]
    arguments = (q, k, v, gates, state, [], state, norm, None, None, None, chunk, True, 2.0, "cpu", keep)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(chunked_module.chunked_memory, arguments, test_utils=checks)
    assert len(chunked_module.chunked_memory(*arguments)[5]) == kept


@pytest.mark.parametrize("compiled_kernel", [True, False])
@pytest.mark.parametrize("tokens", [16, 32])
def test_the_op_says_how_its_results_lie(tokens, compiled_kernel) -> None:
    """With one chunk and with inputs that are views. Inductor relies on the strides of the fake kernel."""
    loop = "cpu" if compiled_kernel else "torch"
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8).transpose(1, 2).requires_grad_() for _ in range(3))
    gates = 0.1 * torch.rand(3, 1, 2, tokens, 3)
    state = [0.1 * torch.randn(6, 2 * rows, columns) for rows, columns in ((8, 16), (16, 8))]
    begin = (state, [], state, [torch.ones(3, 8), torch.zeros(3, 8)], None, None, None)
    arguments = (q, k, v, gates, *begin, 16, True, 2.0, loop, True)
    torch.library.opcheck(chunked_module.chunked_memory, arguments, test_utils=("test_faketensor",))
    y, _, _, end, running, kept = chunked_module.chunked_memory(*arguments)
    held = [*kept_states(kept, state)]
    given = (y, end, running, *(t.detach() for t in (q, k, v)), gates, *begin[1:], held, 16, True, 2.0, loop)
    torch.library.opcheck(chunked_module.chunked_memory_backward, given, test_utils=("test_faketensor",))


@pytest.mark.parametrize("compiled_kernel", [True, False])
@pytest.mark.parametrize(("chunk", "tokens"), [(4, 3), (4, 19), (4, 24), (4, 27), (16, 40), (2, 2**14 + 5)])
def test_the_op_knows_its_shapes_where_a_chunk_is_cut(chunk, tokens, compiled_kernel) -> None:
    """Without state, padding and documents no shape depends on the data, so a compiled caller has no graph break."""
    loop = "cpu" if compiled_kernel else "torch"
    q = torch.randn(1, tokens, 1, 8)
    gates = 0.1 * torch.rand(3, 1, 1, tokens, 1)
    state = [0.1 * torch.randn(1, 16, 8)]
    arguments = (q, q, q, gates, state, [], state, [], None, None, None, chunk, True, None, loop, True)
    torch.library.opcheck(chunked_module.chunked_memory, arguments, test_utils=("test_faketensor",))
    torch._dynamo.reset()  # drops the graphs of the other loop
    call = torch.compile(chunked_module.chunked_memory, fullgraph=True, backend="eager")
    assert [t.shape for t in call(*arguments)[5]] == [t.shape for t in chunked_module.chunked_memory(*arguments)[5]]


def test_tensors_without_data_do_not_reach_the_kernel() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        memory = NeuralMemory(16, 2, chunk_size=4)
        y, _ = memory(torch.randn(1, 512, 16))
    assert y.shape == (1, 512, 16)


def test_denormals_stay_the_callers_business() -> None:
    code = (
        "import torch; from titanslab.memory import NeuralMemory; m = NeuralMemory(16, 2); "
        "m(torch.randn(1, 32, 16))[0].sum().backward(); x = torch.tensor([1e-39]); assert (x * 0.5).item() > 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_do_not_change_the_result() -> None:
    case = Case(dtype=torch.float32, batch=3, tokens=64, chunk_size=16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(make(case).run("chunked")[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("names", ["qkv", "q", "kv"])
@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("with_tail", [False, True])
def test_features_are_convolution_silu_and_norm(names: str, tokens: int, with_tail: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    heads, width, unit = 3, 15, len(names.replace("v", ""))
    x, weight = [draw(2, tokens, width) for _ in names], [draw(4, width) for _ in names]
    tail = [draw(2, 3, width) for _ in names] if with_tail else []
    assert takes_features(*x, *weight)
    got = convolve(x, weight, tail, heads, unit)
    want = []
    for i in range(len(names)):
        y = F.silu(short_conv(x[i], weight[i], tail[i] if tail else None)[0]).unflatten(-1, (heads, -1))
        want.append((F.normalize(y, dim=-1) if i < unit else y).flatten(-2))
    factors = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in want]
    grads = [
        torch.autograd.grad(sum((y * f).sum() for y, f in zip(ys, factors, strict=True)), [*x, *weight, *tail])
        for ys in (got, want)
    ]
    for a, b in zip((*got, *grads[0]), (*want, *grads[1]), strict=True):
        assert distance(a, b) < EXACT


def test_gated_norm_is_norm_times_gate() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    y, weight, gate, factor = draw(2, 5, 3, 7), draw(3, 7), draw(2, 5, 21), draw(2, 5, 21)
    results = [norm_and_gate(y, weight, gate, 1e-5), (F.rms_norm(y, (7,), eps=1e-5) * weight).flatten(-2) * gate]
    grads = [torch.autograd.grad((r * factor).sum(), (y, weight, gate)) for r in results]
    for a, b in zip((results[0], *grads[0]), (results[1], *grads[1]), strict=True):
        assert distance(a, b) < EXACT


def test_layer_is_the_same_with_and_without_recomputation_and_kernel(monkeypatch) -> None:
    torch.manual_seed(0)
    layer = module.NeuralMemory(24, 3, chunk_size=8, head_dim=9).double()
    x = torch.randn(2, 40, 24, dtype=torch.float64)
    state = layer(x)[1].detach()

    def run() -> list[torch.Tensor]:
        y, end = layer(x, state)
        tensors = [y, *end.conv.values(), *end.memory.weights]
        return [*tensors, *torch.autograd.grad(sum(t.square().sum() for t in tensors), list(layer.parameters()))]

    want = run()
    monkeypatch.setattr(module, "RECOMPUTE_TOKENS", 1)
    recomputed = run()
    monkeypatch.setattr(module, "takes_features", lambda *_: False)
    monkeypatch.setattr(module, "takes_layer", lambda *_: False)
    for results in (recomputed, run()):
        for a, b in zip(results, want, strict=True):
            assert distance(a, b) < EXACT


@pytest.mark.parametrize(
    ("options", "carried", "persistent", "write_scale"),
    [
        ({}, False, False, 1.0),
        ({"gates_per_layer": False}, True, False, 0.5),
        ({"norm": False, "residual": False, "momentum": False}, True, False, 1.0),
        ({"forgetting": False, "conv_size": 3}, False, True, 1.0),
        ({"depth": 3, "grad_clip": None}, True, True, 1.0),
        ({"gate_keys": True, "conv_size": 3}, True, True, 1.0),
    ],
)
def test_packed_layer_is_the_layer(monkeypatch, options, carried, persistent, write_scale) -> None:
    torch.manual_seed(0)
    layer = module.NeuralMemory(24, 3, chunk_size=8, head_dim=9, **options).double()
    if layer.theta_key_proj is not None:
        torch.nn.init.normal_(layer.theta_key_proj.weight)
    x, before = (torch.randn(2, n, 24, dtype=torch.float64, requires_grad=True) for n in (41, 11))
    vectors = torch.randn(3, 24, dtype=torch.float64)

    def run(packs: bool, recomputes: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(backends, "LAYER_TOKENS", 4 if packs else 10**9)
        monkeypatch.setattr(module, "RECOMPUTE_TOKENS", 4 if recomputes else 10**9)
        assert layer.takes_pass(x) == packs
        initial = layer.initial_state(1, vectors) if persistent else None
        state = layer(before, initial=initial)[1] if carried else None
        y, end, stats = layer(x, state, initial=initial, write_scale=write_scale, return_stats=True)
        memory = end.memory
        tensors = [y, *end.conv.values(), *memory.weights, *memory.momentum, *memory.chunk_weights]
        total = sum(t.square().sum() for t in tensors)
        leaves = [x, *layer.parameters()] + [before] * carried
        return [*tensors, memory.offset, *stats.values(), *torch.autograd.grad(total, leaves)]

    want = run(False, False)
    for packed in (run(True, True), run(True, False)):
        for a, b in zip(packed, want, strict=True):
            assert distance(a.double(), b.double()) < EXACT


@pytest.mark.parametrize("packs", [True, False])
def test_halves_make_the_whole(monkeypatch, packs) -> None:
    """A writer for each piece and one output projection equal `forward`; `queries` and `recall` equal `retrieve`."""
    monkeypatch.setattr(backends, "LAYER_TOKENS", 4 if packs else 10**9)
    torch.manual_seed(0)
    layer = module.NeuralMemory(24, 3, chunk_size=4).double()
    x = torch.randn(2, 27, 24, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 27, dtype=torch.bool)
    mask[1, 5:9] = False
    gradients = []
    for halves in (True, False):
        if halves:
            state, reads = layer.initial_state(2), []
            assert layer.takes_pass(x) == packs
            rules = {"learn": True, "write_scale": 1.0, "return_stats": False}
            for piece in x.split(12, 1):
                written = layer.write(piece, state, lengths=None, reset=None, initial=None, **rules)
                state = written.state
                reads.append(written.y)
            y = layer.output(torch.cat(reads, 1), x)
            padding = Padding.of(mask)
            q, tail = layer.queries(padding.compact(x), state, lengths=padding.lengths)
            z = padding.restore(layer.output(layer.recall(q, state.memory.weights), padding.compact(x)))
            read = replace(state, conv={**state.conv, "read": tail})
        else:
            y, state = layer(x, layer.initial_state(2))
            z, read = layer.retrieve(x, state, mask=mask)
        total = sum(t.square().sum() for t in (y, z, *read.conv.values()))
        gradients.append([y, z, *torch.autograd.grad(total, [x, *layer.parameters()])])
    for a, b in zip(*gradients, strict=True):
        assert distance(a, b) < EXACT


def test_packed_layer_leaves_adapted_projections_alone(monkeypatch) -> None:
    monkeypatch.setattr(backends, "LAYER_TOKENS", 4)
    layer, x = module.NeuralMemory(24, 3, chunk_size=8), torch.randn(1, 8, 24)
    plain = layer(x)[0]
    assert layer.takes_pass(x)
    layer.v_proj.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    assert not layer.takes_pass(x)
    assert not torch.allclose(layer(x)[0], plain)


@pytest.mark.parametrize("name", ["o_norm", "memory_norm_weight", "q_conv1d", "memory_weights"])
def test_a_parameter_in_another_dtype_takes_the_plain_path(name) -> None:
    """The kernels read memory as the dtype of the input, so a parameter of another dtype must not reach them."""
    torch.manual_seed(0)
    layer, x = module.NeuralMemory(24, 3, chunk_size=8).double(), torch.randn(2, 40, 24, dtype=torch.float64)
    want = layer(x)[0]
    assert layer.takes_pass(x)
    part = getattr(layer, name)
    if isinstance(part, torch.nn.Module):
        part.float()
    else:
        part.data = part.data.float()
    assert not layer.takes_pass(x)
    torch.testing.assert_close(layer(x)[0], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["chunked", "recurrent", "auto"])
@pytest.mark.parametrize("tokens", [(5,), (1, 7, 3), (20, 50), (30, 34, 1), (63, 1, 9)])
def test_a_call_within_a_long_chunk_is_the_token_loop(backend, tokens) -> None:
    """The work of a short call does not grow with the chunk; its outputs, end state and gradients are the same."""
    torch.manual_seed(0)
    layers = [NeuralMemory(12, 2, chunk_size=64, backend=name).double() for name in (backend, "reference")]
    layers[1].load_state_dict(layers[0].state_dict())
    x, found = torch.randn(2, sum(tokens), 12, dtype=torch.float64), []
    for layer in layers:
        state, ys = None, []
        for piece in x.split(tokens, 1):
            y, state = layer(piece, state)
            ys.append(y)
        y = torch.cat(ys, 1)
        tensors = [y, *state.tensors().values()]
        total = sum(t.square().sum() for t in tensors if t.is_floating_point())
        found.append([*tensors, *torch.autograd.grad(total, list(layer.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
