"""`torch.export` of a layer that reads, learns or is frozen, for any number of rows and tokens; ONNX of the read."""

import pytest
import torch
from torch import nn

from titanslab.memory import NeuralMemory, NeuralMemoryState


class Call(nn.Module):
    """A call of the layer on tensors alone."""

    def __init__(self, memory: NeuralMemory, kind: str) -> None:
        super().__init__()
        self.memory, self.kind = memory, kind

    def forward(self, x: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        before = NeuralMemoryState.from_tensors(state)
        if self.kind == "retrieve":
            y, after = self.memory.retrieve(x, before)
        else:
            y, after = self.memory(x, before, learn=self.kind == "learn")
        return y, after.tensors()


def exported(kind: str) -> tuple[Call, torch.export.ExportedProgram]:
    """A layer, and its call exported from two rows of 12 tokens."""
    torch.manual_seed(0)
    call = Call(NeuralMemory(16, 2, chunk_size=4), kind).eval()
    state = call.memory.update(torch.randn(2, 6, 16)).detach().tensors()
    rows, tokens = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("tokens", min=3, max=4096)
    sizes = {0: rows, 1: tokens}, {name: {0: rows} for name in state}
    return call, torch.export.export(call, (torch.randn(2, 12, 16), state), dynamic_shapes=sizes)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["retrieve", "frozen", "learn"])
def test_an_exported_call_takes_any_number_of_rows_and_tokens(kind: str) -> None:
    call, program = exported(kind)
    for rows, tokens in ((1, 3), (3, 600)):
        x = torch.randn(rows, tokens, 16)
        state = call.memory.update(torch.randn(rows, 5, 16)).tensors()
        (y, after), (z, again) = call(x, state), program.module()(x, state)
        torch.testing.assert_close(z, y)
        assert list(again) == list(after)
        for name, tensor in after.items():
            torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_read_runs_in_onnx_runtime(tmp_path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    call, program = exported("retrieve")
    x, state = torch.randn(3, 29, 16), call.memory.update(torch.randn(3, 7, 16)).tensors()
    names = {"input_names": ["x", *state], "output_names": ["y", *(f"new {name}" for name in state)]}
    torch.onnx.export(program, **names, verbose=False).save(tmp_path / "read.onnx")
    session = runtime.InferenceSession(tmp_path / "read.onnx")
    wanted = {i.name for i in session.get_inputs()}
    given = {n: t.numpy() for n, t in {"x": x, **state}.items() if n in wanted}
    (y,) = session.run(["y"], given)
    torch.testing.assert_close(torch.from_numpy(y), call(x, state)[0], rtol=1e-4, atol=1e-5)
