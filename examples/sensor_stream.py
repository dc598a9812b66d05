"""A stream of eight sensors without end: the surprise of a memory that was never trained marks a fault."""

import itertools

import torch

from titanslab.memory import NeuralMemory

PIECE, FAULT = 25, 12_000  # samples that arrive at a time; the fault begins at this sample


def sensors():
    """Pieces [1, PIECE, 8] for ever: waves of a machine with noise. For 50 samples sensor 2 gives noise alone."""
    generator = torch.Generator().manual_seed(0)
    phase = 6.28 * torch.rand(8, generator=generator)
    for first in itertools.count(0, PIECE):
        t = torch.arange(first, first + PIECE)[:, None]
        loud, noise = 1 + 0.3 * torch.sin(t / 97), torch.randn(PIECE, 8, generator=generator)
        samples = torch.sin(t / 4 + phase) * loud + 0.05 * noise
        if FAULT <= first < FAULT + 50:
            samples[:, 2] = noise[:, 2]
        yield samples[None]


torch.manual_seed(0)
memory = NeuralMemory(8, num_heads=2, head_dim=16, chunk_size=4, norm=False, residual=False)
state, surprise, size = None, [], []
for piece in itertools.islice(sensors(), 800):  # a service would have no limit here
    with torch.no_grad():
        _, state, stats = memory(piece, state, return_stats=True)
    surprise.append(stats["loss"].mean().item())  # the inner loss: how wrong the memory was before each write
    size.append(state.nbytes())

learned = surprise[40:]  # in the first 1,000 samples everything is new
marked = 40 + learned.index(max(learned))
normal = max(s for n, s in enumerate(surprise[40:], 40) if not FAULT <= n * PIECE < FAULT + 100)
print(f"surprise of the first piece {surprise[0]:.2f}, of piece 40 {surprise[40]:.2f}")
marks, times, grown = marked * PIECE, max(learned) / normal, size[-1] - size[0]
print(f"fault at {FAULT}, marked at {marks}: {times:.1f} times any other surprise; the state grew by {grown} bytes")
