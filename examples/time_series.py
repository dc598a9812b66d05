"""A forecaster of one's own around `NeuralMemory`: each series has a profile of its own, which the memory learns."""

import torch
from torch import nn

from titanslab.memory import NeuralMemory

YEAR = 12  # values a year


def series(rows, years):
    """[rows, years * YEAR, 1]: one random profile a row, every year again, with noise."""
    profile = torch.randn(rows, YEAR).repeat(1, years)
    return (profile + 0.1 * torch.randn_like(profile))[..., None]


class Forecaster(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(1, width), nn.LayerNorm(width), nn.Linear(width, 1)
        self.memory = NeuralMemory(width, num_heads=1, chunk_size=4, conv_size=8)  # a query is eight values

    def forward(self, values, state=None, learn=True):
        x = self.embed(values)
        y, state = self.memory(self.norm(x), state, learn=learn)
        return self.head(x + y), state  # for each value a forecast of the next one


torch.manual_seed(0)
model = Forecaster()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(100):
    values = series(16, years=8)
    forecast, _ = model(values[:, :-1])
    loss = (forecast - values[:, 1:])[:, YEAR:].square().mean()  # in the first year no model can know the profile
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

values, errors = series(64, years=20), {}
with torch.no_grad():
    for learn in (True, False):
        step, state = model(values[:, :-YEAR], learn=learn)
        ahead = [step[:, -1:]]
        while len(ahead) < YEAR:  # a forecast is the next input
            step, state = model(ahead[-1], state, learn=False)
            ahead.append(step)
        errors[learn] = (torch.cat(ahead, 1) - values[:, -YEAR:]).square().mean().item()
mean = values.square().mean()  # the error of a forecast of 0
print(f"squared error, a year ahead: memory on {errors[True]:.2f}, memory off {errors[False]:.2f}, mean {mean:.2f}")
