"""A trained layer that goes on learning in ONNX Runtime: one token a call, the state in and out of the session."""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from titanslab.memory import NeuralMemory, NeuralMemoryState

try:
    import onnxruntime
    import onnxscript  # noqa: F401 - torch.onnx.export needs it
except ImportError:
    sys.exit("this example needs three more packages: pip install 'titans-lab[onnx]'")


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = NeuralMemory(16, num_heads=2, chunk_size=4)  # train it as in export.py

    def forward(self, x, state):
        y, after = self.memory(x, NeuralMemoryState.from_tensors(state))
        return y, after.tensors()


torch.manual_seed(0)
model = Step().eval()
state = model.memory.initial_state(1).detach().tensors()
program = torch.export.export(model, (torch.randn(1, 1, 16), state))  # T = 1: operations of PyTorch alone
path = Path(tempfile.mkdtemp()) / "step.onnx"
names = {"input_names": ["x", *state], "output_names": ["y", *(f"new {name}" for name in state)]}
torch.onnx.export(program, **names, verbose=False).save(path)

session = onnxruntime.InferenceSession(path)
given, worst = {name: tensor.numpy() for name, tensor in state.items()}, 0.0
for x in torch.randn(100, 1, 1, 16):
    y, *new = session.run(None, {"x": x.numpy(), **given})
    given = dict(zip(state, new, strict=True))
    with torch.no_grad():
        z, state = model(x, state)
    worst = max(worst, abs(y - z.numpy()).max().item())
moved = (torch.from_numpy(given["memory.weights.0"]) - model.memory.memory_weights[0]).norm().item()
print(f"largest difference after 100 tokens {worst:.0e}; in ONNX Runtime the memory's weights moved by {moved:.2f}")
