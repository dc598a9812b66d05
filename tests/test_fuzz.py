"""A hundred malformed inputs of a fixed seed, and the faults that the driver itself must find."""

import os
import pickle
import sys
import time
from types import SimpleNamespace

import pytest

from fuzz import driver
from fuzz.__main__ import table, warm_up
from fuzz.command import Answer, Case, titans
from fuzz.damage import Pickle

INPUTS, SEED = 100, 2026

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="children are forked")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    warm_up()
    return tmp_path_factory.mktemp("fuzz").resolve()


def test_no_malformed_input_finds_a_fault(folder):
    cases = driver.shared(INPUTS, list(driver.KINDS))
    reports = list(driver.fuzz(cases, SEED, folder))
    assert [(report.kind, report.index) for report in reports] == cases
    faults = [f"{r.kind}:{r.index} {r.name}: {r.fault}" for r in reports if r.fault]
    assert not faults, "\n".join(faults)
    assert min(table(reports).count(kind) for kind in driver.KINDS) == 1
    verdicts = [report.verdict for report in reports]
    assert verdicts.count(driver.DONE) > 10  # the inputs are not all of one sort
    assert verdicts.count(driver.REFUSED) > 10


def raises(error):
    def run():
        raise error

    return run


def unpickles(folder):
    pickle.loads(pickle.dumps(Pickle(folder / "unpickled")))
    return Answer(driver.DONE)


def writes(folder):
    path = folder.parents[2] / "outside.txt"
    path.write_text("x")
    path.unlink()
    return Answer(driver.DONE)


def command_raises(folder):
    from titanslab.cli import info

    info.info = raises(TypeError("x"))
    return titans("info")


BAD = {
    "accepted": lambda folder: Answer(driver.DONE),
    "no end in": lambda folder: time.sleep(60),
    "the process died": lambda folder: os._exit(3),
    driver.UNPICKLED: unpickles,
    driver.OUTSIDE: writes,
    "the check failed": lambda folder: raises(KeyError("x"))(),
    "unexpected": command_raises,
}


def test_every_fault_is_found(folder, monkeypatch):
    """A kind of inputs of which each has another fault; the children that hang and die are replaced."""
    names = list(BAD)
    kind = SimpleNamespace(
        make=lambda rng, files, work: Case(
            "bad", lambda: BAD[names[int(work.name.partition("-")[2])]](work), refuse=work.name == "bad-0"
        )
    )
    monkeypatch.setitem(driver.KINDS, "bad", kind)
    monkeypatch.setattr(driver, "SECONDS", 2.0)
    reports = list(driver.fuzz([("bad", i) for i in range(len(names))], 0, folder))
    assert [report.index for report in reports] == list(range(len(names)))
    for name, report in zip(names, reports, strict=True):
        assert name in report.fault, name
