"""The versions, the machine and the commit that a result was made with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "triton")
CODE = ("src", "benchmarks")  # folders of a checkout whose uncommitted changes count; results among them do not
ROOT = Path(__file__).resolve().parents[3]  # of the checkout, where the package is run from one


def versions() -> dict[str, Any]:
    """Facts about a run: versions of packages, the devices, and this package's commit.

    The commit is None outside a checkout, and ends in "-dirty" after local changes of code.
    """
    import torch

    import titanslab

    commit, changed = checkout()
    return {
        "titanslab": titanslab.__version__,
        "commit": commit and commit + "-dirty" * changed,
        **package_versions(PACKAGES),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """The version of Python and of each package; None for a package that is not installed."""
    from importlib import metadata

    import torch

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with its build, which the package's metadata may leave out
    return found


def checkout() -> tuple[str | None, bool]:
    """The commit of the checkout this package is run from (None outside one), and whether code differs from it."""
    if not (ROOT / ".git").exists():
        return None, False

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", *CODE).splitlines()
        return git("rev-parse", "HEAD"), any("benchmarks/results/" not in line for line in changes)
    except (OSError, subprocess.SubprocessError):
        return None, False


def processor() -> str:
    """The name of the processor, as the system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, memory in bytes and, for a GPU, its name and memory."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": processor(),
        "cores": usable,
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "device": device.type,
        "switches": {name: os.environ[name] for name in ("TITANS_NATIVE",) if name in os.environ},
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return facts
