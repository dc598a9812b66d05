"""Backends as fixtures: `chunked` counts twice, compiled kernel and PyTorch loop."""

import pytest

import titanslab.memory.chunked.op as chunked_module
from titanslab.memory.chunked import loop as chunk_loop


@pytest.fixture(params=["recurrent", "chunked", "chunked-loop"])
def backend(request, monkeypatch) -> str:
    if request.param == "chunked-loop":
        monkeypatch.setattr(chunked_module, "implementation", lambda *_: (chunk_loop, "chosen by the test"))
        return "chunked"
    return request.param
