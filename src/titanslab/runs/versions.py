"""What a result was made with: versions, machine, and the commit where the package is run from a checkout."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "triton")


def versions() -> dict[str, Any]:
    """Versions of all that matters, the devices, and this package's git commit (None outside a checkout)."""
    from importlib import metadata

    import torch

    import titanslab

    found: dict[str, Any] = {
        "titanslab": titanslab.__version__,
        "commit": git_commit(),
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with its build, which the package's metadata may leave out
    found["platform"] = platform.platform()
    found["processor"] = _processor()
    found["cpus"] = os.cpu_count()
    found["torch_threads"] = torch.get_num_threads()
    found["cuda"] = torch.version.cuda
    found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def git_commit() -> str | None:
    """The commit of the checkout this package is run from, "-dirty" after local changes, or None."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
