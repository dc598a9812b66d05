"""Fixtures of the backends. `chunked` has two: the compiled kernel and the PyTorch loop."""

import pytest

from titanslab.memory import backends


@pytest.fixture(params=["recurrent", "chunked", "chunked-loop"])
def backend(request, monkeypatch) -> str:
    if request.param == "chunked-loop":
        monkeypatch.setattr(backends, "cpu_kernel", lambda *_: (False, "chosen by the test"))
        return "chunked"
    return request.param
