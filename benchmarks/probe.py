"""Measures the memory of one candidate in its own process.

`python -m benchmarks.probe NAME SETTING_JSON` prints JSON.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.measure import allocations, one_line, peak_bytes
from benchmarks.models import ModelSetting
from benchmarks.peers import Setting
from titanslab.memory.cpu.reuse import release
from titanslab.runs.versions import ROOT

# glibc's heap fragments, and the resident size exceeds the bytes in use (2.2 times in titans-pytorch). With this
# setting the system maps blocks above 64 KiB one by one, and unmaps them when they are freed.
UNFRAGMENTED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def _build(name: str, setting: Setting | ModelSetting) -> Any:
    """Build the candidate: a layer or op for a `Setting`, a model in training for a `ModelSetting`."""
    module = "models" if isinstance(setting, ModelSetting) else "peers"
    return importlib.import_module(f"benchmarks.{module}").build(name, setting)


def probe(name: str, setting: Setting | ModelSetting, peak_only: bool = False) -> dict[str, Any]:
    """Peak of forward, peak of forward + backward, and the bytes that forward holds for backward.

    The first full step does not count, because it loads libraries and compiles code. Input and parameters do not count,
    because they exist before; the gradients of the parameters count.
    """
    device = torch.device(setting.device)
    work = _build(name, setting)
    work.step()
    release()  # frees unused buffers, so that the measured call has to allocate its own
    result: dict[str, Any] = {"forward_backward_peak": peak_bytes(work.step, device)}
    if peak_only:
        return result
    release()
    result["forward_peak"] = peak_bytes(work.forward, device)
    release()
    held = allocations(work.output, device)
    release()
    whole = allocations(work.step, device)
    tokens = setting.batch * setting.tokens
    result["held_for_backward_bytes"] = held["held"]
    result["held_bytes_per_token"] = held["held"] / tokens
    result["forward_backward_allocated_peak_bytes"] = whole["peak"]
    result["leaf_bytes"] = sum(t.numel() * t.element_size() for t in work.leaves)
    return result


def in_fresh_process(name: str, setting: Setting | ModelSetting, threads: int, timeout: float) -> dict[str, Any]:
    """`probe` in a new process; if that fails, `{"error": one line}`.

    On a CPU the peak is measured twice: without heap fragmentation (the figure), and with malloc's default settings.
    """
    result = _run(name, setting, threads, timeout, UNFRAGMENTED, [])
    if setting.device == "cpu" and "error" not in result:
        plain = _run(name, setting, threads, timeout, {}, ["--peak-only"])
        result["forward_backward_peak_default_malloc"] = plain.get("forward_backward_peak", plain)
    return result


def _run(
    name: str,
    setting: Setting | ModelSetting,
    threads: int,
    timeout: float,
    environment: dict[str, str],
    options: list[str],
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.probe", name, json.dumps(asdict(setting)), *options]
    command += ["--threads", str(threads)]
    environment = {**os.environ, **environment}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return {"error": f"exit code {done.returncode}: {reason}"[:300]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a candidate of benchmarks.peers")
    parser.add_argument("setting", help="its Setting as JSON")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's default")
    parser.add_argument("--peak-only", action="store_true", help="measure the peak of forward + backward alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        fields = json.loads(arguments.setting)
        setting = ModelSetting(**fields) if "size" in fields else Setting(**fields)
        print(json.dumps(probe(arguments.name, setting, arguments.peak_only)))
    except Exception as error:  # the parent process reads one line
        print(one_line(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
