"""Jobs of `titanslab.experiments.long_context` side by side, each in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from titanslab.experiments.machine import ROOT
from titanslab.experiments.report import say
from titanslab.experiments.row import Job


class Running:
    """A job in a process of its own, its words going to log.txt in its folder."""

    def __init__(self, job: Job, threads: int) -> None:
        self.name, self.begun = Path(job.folder).name, time.perf_counter()
        self.log = Path(job.folder) / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        count = str(threads)
        environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONUNBUFFERED": "1"}
        if threads == 1:
            environment["TOKENIZERS_PARALLELISM"] = "false"
        words = [sys.executable, "-m", "titanslab.experiments.row", job.to_json()]
        with open(self.log, "a", encoding="utf-8") as file:
            self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=file)

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "starting"


def run_jobs(jobs: list[Job], at_once: int, threads: int, every: float = 30.0) -> list[str]:
    """Run all jobs, so many side by side; returns the names of those that failed."""
    waiting, active, failed, seconds = list(jobs), list[Running](), list[str](), list[float]()
    told = time.perf_counter()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the jobs end with this process
    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                active.append(Running(waiting.pop(0), threads))
                say(f"{active[-1].name}: started, {len(waiting)} waiting; log: {active[-1].log}")
            time.sleep(0.5)
            for run in [run for run in active if run.process.poll() is not None]:
                active.remove(run)
                if run.process.returncode:
                    failed.append(run.name)
                    say(f"{run.name}: FAILED: {run.last_words()}")
                else:
                    seconds.append(time.perf_counter() - run.begun)
                    left = sum(seconds) / len(seconds) * (len(waiting) + len(active)) / at_once
                    say(f"{run.name}: done in {seconds[-1]:,.0f} s; the rest takes about {left / 60:,.0f} min")
            if time.perf_counter() - told >= every:
                told = time.perf_counter()
                for run in active:
                    say(f"{run.name}: {run.last_words()}")
    finally:
        for run in active:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGTERM)
        for run in active:
            run.process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed
