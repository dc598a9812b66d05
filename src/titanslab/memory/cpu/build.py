"""Compile the CPU kernels with the system's C++ compiler, once per machine and source."""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

SOURCE = Path(__file__).parent / "source"
INEXACT = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
FLAGS = ("-std=c++17", "-O3", "-march=native", *INEXACT, "-fopenmp", "-shared", "-fPIC")
MAX_LAYERS = 8  # most layers of a memory: the length of the pointer arrays in the kernels' arguments
LAYERS = ctypes.c_void_p * MAX_LAYERS
MAX_PARTS = 3  # most inputs of the features kernel
KINDS: dict[str, type] = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
LENGTHS = {"MAX_LAYERS": MAX_LAYERS, "MAX_PARTS": MAX_PARTS}
REALS = {torch.float32: "float", torch.float64: "double"}


def cache_folder() -> Path:
    """Where what was compiled or measured here is kept: `TITANS_CACHE`, else the user's cache folder."""
    root = os.environ.get("TITANS_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "titanslab"


def fields(source: str, name: str) -> list[tuple[str, type]]:
    """The fields of `struct name` in a kernel's source file, for the ctypes structure that mirrors it."""
    body = re.search(rf"struct {name} {{\n(.*?)\n}};", (SOURCE / source).read_text(), re.DOTALL)
    assert body is not None, f"{source} has no struct {name}"
    found: list[tuple[str, type]] = []
    for kind, names in re.findall(r"(\w+)([^;]+);", re.sub(r"//.*", "", body[1])):
        for star, field, length in re.findall(r"(\*?)\s*(\w+)(?:\[(\w+)\])?", names):
            base: Any = ctypes.c_void_p if "*" in (star, names.strip()[0]) else KINDS[kind]
            found.append((field, base * LENGTHS[length] if length else base))
    return found


class Library(NamedTuple):
    """The loaded kernel, or None; and the compiler that built it, or the reason why there is none."""

    handle: ctypes.CDLL | None
    reason: str


def _cpu_features() -> str:
    """The processor's feature flags, on which `-march=native` depends; a cache may be on a disk that machines share."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), platform.machine())


def _digest(compiler: str, real: str) -> str:
    """A name for everything from which a kernel is built: the compiler, the flags, the processor and all sources."""
    digest = hashlib.sha256(" ".join((compiler, *FLAGS, real, _cpu_features())).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, real: str, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        command = [compiler, *FLAGS, f"-DTITANS_REAL={real}", str(SOURCE / source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or ["no message"])[-1])
        os.replace(built, target)


@cache
def load(dtype: torch.dtype, kernel: str = "chunked") -> Library:
    """A kernel for float32 or float64, compiled at its first use; if that fails, the reason."""
    if os.environ.get("TITANS_NATIVE", "1") == "0":
        return Library(None, "turned off by TITANS_NATIVE=0")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return Library(None, "no C++ compiler found (g++ or clang++)")
    target = cache_folder() / f"{kernel}-{REALS[dtype]}-{_digest(compiler, REALS[dtype])}.so"
    try:
        if not target.exists():
            _compile(compiler, REALS[dtype], f"{kernel}.cpp", target)
        handle = ctypes.CDLL(str(target))
        handle.titans_arguments_size.restype = ctypes.c_int64
    except (OSError, subprocess.SubprocessError) as error:
        return Library(None, f"the CPU kernel did not compile or load: {error}")
    return Library(handle, f"compiled with {Path(compiler).name}")
