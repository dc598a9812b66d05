"""A reinforcement loop, one observation a step: state in and out, one reset a row, gradients over twenty steps."""

import torch
from torch import nn

from titanslab.memory import NeuralMemory

ROWS = 16


class Corridors:
    """A signal at the entrance says which way to turn at the end, four to eight steps later. Rows end at any time."""

    def __init__(self):
        self.left, self.goal = torch.zeros(ROWS, dtype=torch.long), torch.zeros(ROWS, dtype=torch.long)
        self.begin(torch.ones(ROWS, dtype=torch.bool))

    def begin(self, rows):
        fresh, self.new = torch.randint(4, 9, (ROWS,)), rows
        self.left = torch.where(rows, fresh, self.left - 1)
        self.goal = torch.where(rows, torch.randint(2, (ROWS,)), self.goal)

    def observe(self):
        signal = nn.functional.one_hot(self.goal, 2) * self.new[:, None]
        return torch.cat((signal, self.left[:, None] == 0), 1).float()

    def step(self, action):
        ended = self.left == 0
        reward = ended * (2.0 * (action == self.goal) - 1)
        self.begin(ended)
        return reward, ended


torch.manual_seed(0)
world, embed, norm, policy = Corridors(), nn.Linear(3, 16), nn.LayerNorm(16), nn.Linear(16, 2)
memory = NeuralMemory(16, num_heads=2, depth=1, chunk_size=1)
optimizer = torch.optim.Adam(nn.ModuleList((embed, norm, memory, policy)).parameters(), 1e-2)
state, won = memory.initial_state(ROWS), []
for _ in range(20):
    loss = 0
    for _ in range(20):
        x = embed(world.observe())
        y, state = memory(norm(x)[:, None], state, reset=world.new[:, None])  # a new episode starts from M_0
        choice = torch.distributions.Categorical(logits=policy(x + y[:, 0]))
        action = choice.sample()
        reward, ended = world.step(action)
        loss = loss - (choice.log_prob(action) * reward).sum() / ROWS
        won += (reward[ended] > 0).tolist()
    optimizer.zero_grad()
    loss.backward()  # through the writes of these twenty steps
    optimizer.step()
    state = state.detach()  # the memory goes on, its graph ends

print(f"episodes won: {sum(won[:100]):.0f}% of the first 100, {sum(won[-100:]):.0f}% of the last 100")
