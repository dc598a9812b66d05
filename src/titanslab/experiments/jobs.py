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
STEPS = 1000  # of a run of epochs, until a run of the study has counted its own


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
        progress: called with (done, total), in thousands of `unit_of(jobs)`.

    Returns:
        The names of the failed jobs. A failed job does not stop the others.
    """
    waiting, active, failed = list(jobs), list[Running](), list[str]()
    work = {job.name: _Work(job) for job in jobs}
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
                    del work[run.job.name]
                    say(f"{run.job.name}: FAILED: {run.last_line()}")
                else:
                    work[run.job.name].finished = True
                    say(f"{run.job.name}: done in {time.perf_counter() - run.begun:,.0f} s")
            progress(*_amounts(list(work.values())))
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


def unit_of(jobs: Sequence[Job]) -> str:
    """In what the work of jobs is counted: tokens read, or rows where data has no tokens."""
    return (
        "tokens" if all(hasattr(recipe.data, "sequence_length") for job in jobs for recipe in job.recipes()) else "rows"
    )


def _amounts(work: Sequence[_Work]) -> tuple[int, int]:
    """The work since the start that is done, and all of it, in thousands."""
    for part in work:
        part.look()
    counted = [length for part in work for length in part.lengths()]
    steps = sum(counted) // len(counted) if counted else STEPS
    done = sum(part.done() - part.at_start for part in work)
    total = sum(part.total(steps) - part.at_start for part in work)
    return done // 1000, total // 1000


class _Training(Struct):
    """A run of a job: its steps, None until a run of epochs has counted them, and the work of a step."""

    steps: int | None
    per_step: int


class _Work:
    """The work of a job in tokens read. Its finished part is computed from the files that the job writes."""

    def __init__(self, job: Job) -> None:
        self.folder, self.finished = job.folder, False
        self.training: dict[str, _Training] = {}  # by the run's folder
        for stage, recipe in zip(job.stages, job.recipes(), strict=True):
            settings = recipe.training
            per_step = TRAINING * settings.rows() * getattr(recipe.data, "sequence_length", 1)
            self.training[stage] = _Training(settings.steps if settings.epochs is None else None, per_step)
            if stage == job.stages[0] and job.tunes:
                sweep = job.measured("sweep")
                for rate in sweep.rates:
                    steps = scaled(settings.steps, sweep.share)
                    self.training[f"{tuning.FOLDER}/{rate:g}"] = _Training(steps, per_step)
        self.answers: dict[str, int] = {}  # folder -> tokens of its samples
        for part in job.rounds():
            lengths = [max(1, length) for length in asking.lengths_of(job.ask, part.lengths)]
            tokens = sum(lengths) * part.samples * len(asking.names_of(job.ask))
            self.answers[part.folder] = self.answers.get(part.folder, 0) + tokens
        self.look()
        self.at_start = self.done()

    def look(self) -> None:
        """Read how far the runs are."""
        self.last = {stage: _last_step(self.folder / stage) for stage in self.training}

    def lengths(self) -> list[int]:
        """The steps of those runs of epochs that have counted them."""
        lasts = (self.last[stage].of for stage, run in self.training.items() if run.steps is None)
        return [of for of in lasts if of is not None]

    def total(self, steps: int) -> int:
        """All work, where a run of epochs that has not counted its steps is taken to have `steps`."""
        if self.finished:
            return self.done()  # early stopping may have left out a part
        trained = sum(
            (run.steps or self.last[stage].of or steps) * run.per_step for stage, run in self.training.items()
        )
        return trained + sum(self.answers.values())

    def done(self) -> int:
        """Work of the logged steps and of the answered samples."""
        trained = 0
        for stage, run in self.training.items():
            step = self.last[stage].step
            trained += run.per_step * (step if run.steps is None else min(run.steps, step))
        return trained + sum(min(whole, _answered(self.folder / name)) for name, whole in self.answers.items())


class _Step(Struct):
    step: int = 0
    of: int | None = None


class _Sample(Struct):
    length: int


def _last_step(run: Path) -> _Step:
    """The last step in a run's log, 0 where there is none."""
    for line in reversed(_lines(run / "metrics.jsonl")):
        with contextlib.suppress(DocumentError):
            return parse_json(line, _Step, origin="metrics", finite=False)
    return _Step()


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
