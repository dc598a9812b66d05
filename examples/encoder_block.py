"""The memory in the place of attention in an encoder block of torch: a picture's class token reads it."""

import torch
from torch import nn

from titanslab.memory import NeuralMemory


class MemoryAttention(nn.Module):
    """Takes the calls of `nn.MultiheadAttention`. An encoder sees both sides, so one memory reads in each direction."""

    batch_first = False  # nn.TransformerEncoderLayer then leaves its fused attention alone

    def __init__(self, width, heads, **options):
        super().__init__()
        self.ahead, self.back = (NeuralMemory(width, heads, **options) for _ in range(2))

    def forward(self, query, *key_and_value, key_padding_mask=None, **unused):
        mask = None if key_padding_mask is None else key_padding_mask == 0  # True there is padding, here a token
        y, _ = self.ahead(query, mask=mask)
        z, _ = self.back(query.flip(1), mask=None if mask is None else mask.flip(1))
        return y + z.flip(1), None  # no attention weights


def pictures(rows):
    """Sixteen noisy patches behind a class token; one patch, anywhere, has the shape that is the class."""
    patches, label = 0.5 * torch.randn(rows, 17, 9), torch.randint(4, (rows,))
    patches[:, 0] = 0
    patches[torch.arange(rows), torch.randint(1, 17, (rows,))] += shapes[label]
    return patches, label


torch.manual_seed(0)
shapes = torch.randn(4, 9)
block = nn.TransformerEncoderLayer(32, nhead=2, dim_feedforward=64, batch_first=True, norm_first=True)
block.self_attn = MemoryAttention(32, 2, depth=1, chunk_size=4)
model = nn.Sequential(nn.Linear(9, 32), block, nn.LayerNorm(32), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(80):
    patches, label = pictures(32)
    loss = nn.functional.cross_entropy(model(patches)[:, 0], label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

patches, label = pictures(1000)
with torch.no_grad():
    right = (model.eval()(patches)[:, 0].argmax(1) == label).float().mean().item()
print(f"classes read from the class token: {right:.1%} right, by chance 25%")
