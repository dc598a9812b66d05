"""Runs several jobs at once, each in its own process, and reports their common progress."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from titanslab.documents import DocumentError, parse_json
from titanslab.experiments import asking, tuning
from titanslab.experiments.job import LOG, SPEED, Job
from titanslab.experiments.report import say
from titanslab.experiments.study import scaled

SECONDS_BETWEEN_LOOKS = 1.0
TRAINING = 3  # work of a token in training, in tokens read: backward takes twice the work of forward


class Running:
    """A job in its own process, whose output goes to log.txt in the job's folder."""

    def __init__(self, job: Job, threads: int, *words: str) -> None:
        self.job, self.begun, self.log = job, time.perf_counter(), job.folder / LOG
        self.log.parent.mkdir(parents=True, exist_ok=True)
        count = str(threads)
        environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONUNBUFFERED": "1"}
        if threads == 1:
            environment["TOKENIZERS_PARALLELISM"] = "false"
        whole = [sys.executable, "-m", "titanslab.experiments.job", job.to_json(), *words]
        with open(self.log, "a", encoding="utf-8") as file:
            self.process = subprocess.Popen(whole, env=environment, stdout=file, stderr=file)

    def last_line(self) -> str:
        """The last line of the log."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


def run_jobs(
    jobs: Sequence[Job], at_once: int, threads: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """Run all jobs, at most `at_once` at a time.

    Args:
        jobs: the jobs, in the order in which they start.
        at_once: most processes at one time.
        threads: number of threads of each process.
        progress: called with (done, total), in thousands of tokens.

    Returns:
        The names of the failed jobs. A failed job does not stop the others.
    """
    waiting, active, failed = list(jobs), list[Running](), list[str]()
    work = {job.name: _Work(job) for job in jobs}
    total, at_start = (sum(getattr(part, name) for part in work.values()) for name in ("total", "at_start"))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the jobs end with this process
    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                active.append(Running(waiting.pop(0), threads))
                say(f"{active[-1].job.name}: started, {len(waiting)} waiting; log: {active[-1].log}")
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for run in [run for run in active if run.process.poll() is not None]:
                active.remove(run)
                if run.process.returncode:
                    failed.append(run.job.name)
                    total -= work[run.job.name].total
                    at_start -= work.pop(run.job.name).at_start
                    say(f"{run.job.name}: FAILED: {run.last_line()}")
                else:
                    say(f"{run.job.name}: done in {time.perf_counter() - run.begun:,.0f} s")
            progress((sum(part.done() for part in work.values()) - at_start) // 1000, (total - at_start) // 1000)
    finally:
        for run in active:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGTERM)
        for run in active:
            run.process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed


def time_jobs(
    jobs: Sequence[Job], threads: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """Time the steps of each job's model, one job after the other; returns the names of the failed ones."""
    failed = []
    for number, job in enumerate(jobs):
        progress(number, len(jobs))
        run = Running(job, threads, SPEED)
        try:
            code = run.process.wait()
        finally:
            if run.process.poll() is None:
                run.process.send_signal(signal.SIGTERM)
                run.process.wait()
        if code:
            failed.append(job.name)
            say(f"{job.name}: speed FAILED: {run.last_line()}")
        progress(number + 1, len(jobs))
    return failed


class _Work:
    """The work of a job in tokens read. Its finished part is computed from the files that the job writes."""

    def __init__(self, job: Job) -> None:
        self.folder = job.folder
        self.training: dict[str, tuple[int, int]] = {}  # run folder -> (steps, work per step)
        for stage, recipe in zip(job.stages, job.recipes(), strict=True):
            settings = recipe.training
            per_step = TRAINING * settings.rows() * getattr(recipe.data, "sequence_length", 1)
            self.training[stage] = settings.steps, per_step
            if stage == job.stages[0] and job.tunes:
                sweep = job.measured("sweep")
                for rate in sweep.rates:
                    self.training[f"{tuning.FOLDER}/{rate:g}"] = scaled(settings.steps, sweep.share), per_step
        self.answers: dict[str, int] = {}  # folder -> tokens of its samples
        for part in job.rounds():
            lengths = [max(1, length) for length in asking.lengths_of(job.ask, part.lengths)]
            tokens = sum(lengths) * part.samples * len(asking.names_of(job.ask))
            self.answers[part.folder] = self.answers.get(part.folder, 0) + tokens
        self.total = sum(steps * tokens for steps, tokens in self.training.values()) + sum(self.answers.values())
        self.at_start = self.done()

    def done(self) -> int:
        """Work of the logged steps and of the answered samples."""
        trained = sum(
            min(steps, _last_step(self.folder / stage)) * tokens for stage, (steps, tokens) in self.training.items()
        )
        return trained + sum(min(whole, _answered(self.folder / name)) for name, whole in self.answers.items())


class _Step(Struct):
    step: int


class _Sample(Struct):
    length: int


def _last_step(run: Path) -> int:
    """Number of the last step in a run's log."""
    for line in reversed(_lines(run / "metrics.jsonl")):
        with contextlib.suppress(DocumentError):
            return parse_json(line, _Step, origin="metrics", finite=False).step
    return 0


def _answered(folder: Path) -> int:
    """Tokens of the answered samples."""
    found = 0
    for line in _lines(folder / "results.jsonl"):
        with contextlib.suppress(DocumentError):
            found += max(1, parse_json(line, _Sample, origin="results").length)
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
