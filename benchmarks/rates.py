"""Matrix-product and copy rates of the machine, measured in turns with the candidates."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Product:
    """A matrix product `[rows, m, k] @ [rows, k, n]`; `work` is its number of FLOPs."""

    def __init__(self, rows: int, m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
        make = lambda *shape: torch.randn(*shape, dtype=dtype, device=device)  # noqa: E731
        lead = (rows,) if rows > 1 else ()
        self.a, self.b = make(*lead, m, k), make(*lead, k, n)
        self.out = torch.empty(*lead, m, n, dtype=dtype, device=device)
        self.flops = 2 * rows * m * k * n
        # One call computes several small products, so that its time is long beside the clock's resolution.
        self.count = max(1, round(2e8 / self.flops)) if device.type == "cpu" else max(1, round(1e11 / self.flops))

    def __call__(self) -> Tensor:
        for _ in range(self.count):
            torch.matmul(self.a, self.b, out=self.out)
        return self.out

    @property
    def work(self) -> int:
        return self.flops * self.count


class Copy:
    """A copy within the device's main memory, too large for its caches; `work` is the number of bytes moved."""

    def __init__(self, device: torch.device) -> None:
        size = (64 << 20) if device.type == "cpu" else (512 << 20)
        self.source = torch.ones(size // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.work = 2 * size  # read and write

    def __call__(self) -> Tensor:
        return self.target.copy_(self.source)


def rate_probes(
    device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, int, int, int]]
) -> dict[str, Callable[[], Tensor]]:
    """A large product, the given products `(rows, m, k, n)`, and a copy, by name."""
    side = 2048 if device.type == "cpu" else 8192
    probes: dict[str, Callable[[], Tensor]] = {f"matmul {side}": Product(1, side, side, side, dtype, device)}
    for rows, m, k, n in shapes:
        probes[f"matmul {rows}x[{m},{k}]@[{k},{n}]"] = Product(rows, m, k, n, dtype, device)
    probes["copy"] = Copy(device)
    return probes
