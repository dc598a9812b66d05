"""A trained layer as a file of `torch.export`, which reads and goes on learning; rows and tokens of any number."""

import io

import torch
from torch import nn

from titanslab.memory import NeuralMemory, NeuralMemoryState


class Stream(nn.Module):
    """One piece of a stream. `torch.export` takes and returns tensors, and the state as a dict of them."""

    def __init__(self):
        super().__init__()
        self.memory = NeuralMemory(16, num_heads=2, chunk_size=4)

    def forward(self, x, state):
        y, after = self.memory(x, NeuralMemoryState.from_tensors(state))
        return y, after.tensors()


torch.manual_seed(0)
model = Stream()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(10):  # it learns to name the token before
    x = torch.randn(4, 32, 16)
    loss = (model.memory(x)[0][:, 1:] - x[:, :-1]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
x, state = torch.randn(2, 12, 16), model.memory.initial_state(2).detach().tensors()
rows, tokens = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("tokens", min=3, max=4096)
sizes = {0: rows, 1: tokens}, {name: {0: rows} for name in state}
file = io.BytesIO()
torch.export.save(torch.export.export(model, (x, state), dynamic_shapes=sizes), file)

file.seek(0)
loaded, worst = torch.export.load(file).module(), 0.0  # in another process: after `import titanslab.memory`
state, again = ({n: t[:1] for n, t in state.items()} for _ in range(2))
for length in (30, 7, 500):  # one row, pieces of any length
    x = torch.randn(1, length, 16)
    with torch.no_grad():
        (y, state), (z, again) = model(x, state), loaded(x, again)
    worst = max(worst, (y - z).abs().max().item())
moved = (again["memory.weights.0"] - model.memory.memory_weights[0]).norm().item()
print(f"largest difference after 537 tokens {worst:.0e}; the exported memory wrote: its weights moved by {moved:.2f}")
