"""Jobs of a study without a process for each: a new interpreter takes longer than a job of a test."""

import contextlib
import time
import traceback
from types import SimpleNamespace

import pytest

from titanslab.experiments import job as jobs_of
from titanslab.experiments import jobs
from titanslab.experiments.job import LOG, SPEED


class Here(jobs.Running):
    """A `Running` that has done its job, in this process, when it is made; its output is in log.txt as ever."""

    def __init__(self, job, threads, *words):
        self.job, self.begun, self.log = job, time.perf_counter(), job.folder / LOG
        self.log.parent.mkdir(parents=True, exist_ok=True)
        code = 0
        with open(self.log, "a") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
            try:
                with jobs_of.alone(job.folder):
                    (jobs_of.time_job if SPEED in words else jobs_of.run)(job)
            except Exception:
                traceback.print_exc()
                code = 1
        self.process = SimpleNamespace(poll=lambda: code, wait=lambda: code, returncode=code)


@pytest.fixture
def in_process(monkeypatch):
    """Jobs run one after the other in this process."""
    monkeypatch.setattr(jobs, "Running", Here)
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LOOKS", 0.01)
