"""What a measurement ran on, and how fast that machine multiplies and copies."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]

# what may take part in a measurement; one that is absent is written down as None
PACKAGES = (
    "torch",
    "titans-lab",
    "titans-pytorch",
    "titans-unofficial",
    "transformers",
    "triton",
    "fla-core",
    "flash-linear-attention",
    "mamba-ssm",
    "causal-conv1d",
    "flash-attn",
)


# settings of the environment that change what is measured
SWITCHES = ("TITANS_NATIVE",)


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, memory and, where used, the GPU."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable,
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "device": device.type,
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return facts


def versions() -> dict[str, str | None]:
    """Installed version of everything that may take part."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with its build, which the package's metadata may leave out
    return found


def commit() -> dict[str, Any]:
    """The checkout measured: its commit, and whether code differs from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "benchmarks")
    code = [line for line in (changed or "").splitlines() if "benchmarks/results/" not in line]
    return {"commit": git("rev-parse", "HEAD"), "uncommitted_code": bool(code)}


def device_slug(device: torch.device) -> str:
    """Short name for file names: `cpu-2core`, `h100`."""
    if device.type == "cuda":
        words = re.findall(r"[a-z]+\d+[a-z]*", torch.cuda.get_device_name(device).lower())
        return words[0] if words else "gpu"
    return f"{device.type}-{torch.get_num_threads()}core"


class Product:
    """A matrix product of fixed shape, as a thing to be timed: `[rows, m, k] @ [rows, k, n]`."""

    def __init__(self, rows: int, m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
        make = lambda *shape: torch.randn(*shape, dtype=dtype, device=device)  # noqa: E731
        lead = (rows,) if rows > 1 else ()
        self.a, self.b = make(*lead, m, k), make(*lead, k, n)
        self.out = torch.empty(*lead, m, n, dtype=dtype, device=device)
        self.flops = 2 * rows * m * k * n
        # many small products are timed together, so that the clock does not matter
        self.count = max(1, round(2e8 / self.flops)) if device.type == "cpu" else max(1, round(1e11 / self.flops))

    def __call__(self) -> Tensor:
        for _ in range(self.count):
            torch.matmul(self.a, self.b, out=self.out)
        return self.out

    @property
    def work(self) -> int:
        return self.flops * self.count


class Copy:
    """A copy within the device's main memory, too large for its caches."""

    def __init__(self, device: torch.device) -> None:
        size = (64 << 20) if device.type == "cpu" else (512 << 20)
        self.source = torch.ones(size // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.work = 2 * size  # read and written

    def __call__(self) -> Tensor:
        return self.target.copy_(self.source)


def rate_probes(
    device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, int, int, int]]
) -> dict[str, Callable[[], Tensor]]:
    """A large product, the given `(rows, m, k, n)` products, and a copy; each has `.work` FLOPs or bytes."""
    side = 2048 if device.type == "cpu" else 8192
    probes: dict[str, Callable[[], Tensor]] = {f"matmul {side}": Product(1, side, side, side, dtype, device)}
    for rows, m, k, n in shapes:
        probes[f"matmul {rows}x[{m},{k}]@[{k},{n}]"] = Product(rows, m, k, n, dtype, device)
    probes["copy"] = Copy(device)
    return probes
