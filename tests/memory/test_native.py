"""The compiled kernel: built once, refused with a reason, leaves no trace in the caller's settings."""

import subprocess
import sys

import torch
from memory_cases import Case, make

import titanslab.memory.chunked as chunked_module
from titanslab.memory import chunk_loop, native
from titanslab.memory.native import build


def test_this_machine_compiles_it() -> None:
    fits, reason = native.available(torch.device("cpu"), torch.float32, 2)
    assert fits, reason


def test_no_compiler_falls_back_and_says_so(monkeypatch) -> None:
    build.load.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    try:
        module, reason = chunked_module.implementation(torch.device("cpu"), torch.float32, 2)
        assert module is chunk_loop
        assert "no C++ compiler" in reason
        make(Case(dtype=torch.float32)).run("chunked")
    finally:
        build.load.cache_clear()


def test_a_compiler_that_fails_is_no_error(monkeypatch, tmp_path) -> None:
    build.load.cache_clear()
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TITANS_CACHE", str(tmp_path))
    try:
        module, reason = chunked_module.implementation(torch.device("cpu"), torch.float32, 2)
        assert module is chunk_loop
        assert "did not compile" in reason
        assert not list(tmp_path.rglob("*.so"))
    finally:
        build.load.cache_clear()


def test_structures_agree_in_size() -> None:
    import ctypes

    handle = build.load(torch.float32).handle
    assert handle.titans_arguments_size() == ctypes.sizeof(native.Arguments)


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
