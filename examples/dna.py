"""Nucleotides with a repeat far back: the loss falls where a gene stands for the second time."""

import torch
from torch import nn

from titanslab.memory import NeuralMemory

GENE = 40


def strand(rows, gap):
    """[rows, 2 * GENE + gap]: a random gene, a repeat of five bases over and over, and the same gene again."""
    gene, unit = torch.randint(4, (rows, GENE)), torch.randint(4, (rows, 5))
    return torch.cat((gene, unit.repeat(1, gap // 5), gene), 1)


class Reader(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(4, width), nn.LayerNorm(width), nn.Linear(width, 4)
        # Chunk 1 and convolutions of eight taps: each base is written under the eight before it.
        options = {"chunk_size": 1, "conv_size": 8, "norm": False, "residual": False, "momentum": False}
        self.memory = NeuralMemory(width, num_heads=1, **options)

    def forward(self, bases, learn=True):
        x = self.embed(bases[:, :-1])
        y, _ = self.memory(self.norm(x), learn=learn)
        logits = self.head(x + y).transpose(1, 2)
        return nn.functional.cross_entropy(logits, bases[:, 1:], reduction="none")


torch.manual_seed(0)
model = Reader()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(80):
    loss = model(strand(16, gap=20)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

far = strand(16, gap=2000)
with torch.no_grad():
    loss, frozen = model(far), model(far, learn=False)
first, again, off = (t.mean() for t in (loss[:, :GENE], loss[:, 8 - GENE :], frozen[:, 8 - GENE :]))
print(f"nats a base: gene first {first:.2f}, again after 2,000 bases {again:.2f}, with the memory off {off:.2f}")
