"""What `auto` takes on a GPU: the fused kernels where a trial on that GPU found them right and faster.

One trial a GPU, dtype and shape of memory; its outcome is kept on disk for this version of torch, Triton and the
kernels. With `TITANS_MEASURE=0` there is no trial and no fused kernel, unless asked for by name.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from titanslab.memory.folder import cache_folder
from titanslab.memory.gpu.plan import supported
from titanslab.memory.network import MemoryNetwork

ROWS, TOKENS = 128, 512  # rows are batch times heads: about one a multiprocessor
# largest distance from PyTorch operations in float32, relative, of any output or gradient
ALLOWED = {torch.float32: 1e-3}
ALLOWED_LOW = 0.1  # with operands of 16 bits
LIMIT = 600  # seconds of a trial, of which most is compiling
_log = logging.getLogger(__name__)


class Trial(NamedTuple):
    """What is tried; all of it numbers and names, so that it can be written down.

    device: such as "cuda:0". dtype: of q, k and v, such as "bfloat16". The rest is the memory's shape.
    """

    device: str
    dtype: str
    depth: int
    expansion: int
    residual: bool
    norm: bool
    clipped: bool
    head_dim: int
    chunk_size: int

    def network(self) -> MemoryNetwork:
        clip = self.head_dim**0.5 if self.clipped else None  # how large is nothing to the kernels
        return MemoryNetwork(self.depth, self.expansion, self.residual, self.norm, grad_clip=clip)


class Outcome(NamedTuple):
    """Seconds of each backend (medians), forward and backward over `TOKENS` and one token; distances; what went wrong.

    passing: the error says nothing of the kernels (memory was short), so it is not to be remembered.
    """

    chunked: float = 0.0
    triton: float = 0.0
    recurrent: float = 0.0
    triton_step: float = 0.0
    distance: float = 0.0
    distance_step: float = 0.0
    error: str = ""
    passing: bool = False


class Verdict(NamedTuple):
    """Whether the fused kernels are taken, for many tokens and for one, and why."""

    reading: bool
    decoding: bool
    reason: str
    reason_decoding: str


def judge(outcome: Outcome, dtype: str) -> Verdict:
    """What an outcome means."""
    if outcome.error:
        why = f"the fused kernels did not run in a trial here: {outcome.error}"
        return Verdict(False, False, why, why)
    apart = max(outcome.distance, outcome.distance_step)
    if not apart <= allowed(dtype):
        why = f"the fused kernels were wrong in a trial here: {apart:.1e} from chunked, {allowed(dtype):g} is allowed"
        return Verdict(False, False, why, why)
    reading = (
        f"measured here, {dtype}: triton {1e3 * outcome.triton:.2f} ms, chunked {1e3 * outcome.chunked:.2f} ms for "
        f"{ROWS} heads and {TOKENS} tokens, forward and backward"
    )
    decoding = (
        f"measured here, {dtype}: triton {1e6 * outcome.triton_step:.0f} us, recurrent "
        f"{1e6 * outcome.recurrent:.0f} us for a token of {ROWS} heads"
    )
    faster = outcome.triton < outcome.chunked, outcome.triton_step < outcome.recurrent
    return Verdict(*faster, reading, decoding)


def allowed(dtype: str) -> float:
    """The largest distance with q, k and v of that dtype."""
    return ALLOWED.get(getattr(torch, dtype), ALLOWED_LOW)


@cache
def verdict(trial: Trial) -> Verdict:
    """What holds for that GPU and memory: from disk, or from a trial now."""
    if os.environ.get("TITANS_MEASURE", "1") == "0":
        why = "the fused kernels were not tried here: TITANS_MEASURE=0"
        return Verdict(False, False, why, why)
    file = _file(trial)
    kept = _read(file)
    if kept is not None:
        return judge(kept, trial.dtype)
    _log.warning(
        "trying the fused memory kernels on %s, once for this shape (a minute or two; TITANS_MEASURE=0 leaves it)",
        trial.device,
    )
    outcome = ask(trial)
    if not outcome.passing:
        outcome = _keep(file, outcome)
    return judge(outcome, trial.dtype)


def ask(trial: Trial) -> Outcome:
    """The trial in a process of its own."""
    command = [sys.executable, "-m", "titanslab.memory.gpu.trial", json.dumps(trial._asdict())]
    root = str(Path(__file__).parents[3])  # the process finds this package, however it came to be on the path here
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=os.environ | {"PYTHONPATH": path}
        )
        return Outcome(**json.loads(done.stdout.strip().splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Outcome(error=f"it took more than {LIMIT} seconds", passing=True)
    except OSError as error:
        return Outcome(error=str(error), passing=True)
    except (ValueError, TypeError, IndexError):
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Outcome(error=f"its process ended with {done.returncode}: {said}", passing=True)


def _file(trial: Trial) -> Path:
    """Where the outcome is kept: named by all that it depends on."""
    device = torch.device(trial.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    depends = [trial._replace(device=name), torch.__version__, _triton_version(), os.environ.get("TITANS_COMPILE", "")]
    digest = hashlib.sha256(json.dumps(depends).encode())
    memory = Path(__file__).parents[1]
    for source in sorted((*memory.glob("*.py"), *memory.glob("gpu/*.py"))):
        digest.update(source.read_bytes())
    return cache_folder() / f"trial-{digest.hexdigest()[:16]}.json"


def _triton_version() -> str:
    """Asked of the module: not every build of torch brings a package of that name."""
    try:
        import triton
    except ImportError:
        return ""
    return triton.__version__


def _read(file: Path) -> Outcome | None:
    try:
        return Outcome(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # not there, or not ours: tried again
        return None


def _keep(file: Path, outcome: Outcome) -> Outcome:
    """Write it down; where another process was first, its outcome is what counts, so that all take one backend."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if _read(file) is None:
            file.unlink(missing_ok=True)
        handle, made = tempfile.mkstemp(dir=file.parent, prefix="trial-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as out:
                json.dump(outcome._asdict(), out)
            os.link(made, file)
        finally:
            os.unlink(made)
    except FileExistsError:
        return _read(file) or outcome
    except OSError as error:
        _log.warning("the trial's outcome is not kept in %s: %s", file.parent, error)
    return outcome


@cache
def tried(device: torch.device, dtype: torch.dtype, decoding: bool, *form: Any) -> tuple[bool, str]:
    """Whether `auto` takes the fused kernels on that GPU, for one token or (`decoding` False) for many, and why.

    `form`: the fields of a `Trial` from depth on.
    """
    if device.index is None:
        device = torch.device(device.type, torch.cuda.current_device())
    trial = Trial(str(device), str(dtype).removeprefix("torch."), *form)
    fits, why_not = supported(device, dtype, trial.network(), trial.head_dim, trial.chunk_size)
    if not fits:
        return False, f"no fused kernel: {why_not}"
    found = verdict(trial)
    return (found.decoding, found.reason_decoding) if decoding else (found.reading, found.reason)


def take_fused(*call: Any) -> bool:
    """The first half of `tried`, which a compiled caller takes for a constant."""
    return tried(*call)[0]


# what torch.compiler.assume_constant_result does, which imports all of the compiler for it
take_fused._dynamo_marked_constant = True  # type: ignore[attr-defined]
