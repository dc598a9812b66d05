"""One writer a place: the second is refused and told who holds it, a killed one blocks nobody."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from titanslab.locks import only_writer

HOLD = """
import sys, time
from titanslab.locks import only_writer
with only_writer(sys.argv[1], "the place"):
    print("held", flush=True)
    time.sleep(60)
"""


def start(place):
    process = subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def refused(place):
    with pytest.raises(ValueError, match="is being written by another process") as caught, only_writer(place, "the"):
        pass
    return str(caught.value)


def test_a_second_writer_learns_who_the_first_is(tmp_path):
    place = tmp_path / "file.memory"
    first = start(place)
    try:
        for _ in range(2):  # a refusal takes nothing away
            assert f"process {first.pid} on " in refused(place)
        link = tmp_path / "link"
        link.symlink_to(place)
        assert f"process {first.pid} on " in refused(link)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with only_writer(place, "the place"):
        assert str(os.getpid()) in (tmp_path / ".file.memory.lock").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_in_one_process_too(tmp_path):
    with only_writer(tmp_path / "a", "a"):
        assert f"process {os.getpid()}" in refused(tmp_path / "a")
        with only_writer(tmp_path / "b", "b"):
            pass


def test_nothing_is_left(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path / "deep" / "run", "the run"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with only_writer(tmp_path / "deep" / "run", "the run"):
        (tmp_path / "deep" / "run").mkdir()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]


def test_a_full_disk_names_the_lock_and_leaves_none(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OSError, match="No space left") as caught, only_writer(tmp_path / "run", "output"):
            pass
    assert caught.value.filename == str(tmp_path / ".run.lock")
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_content_blocks_nobody(tmp_path):
    for content in ("", "[" * 10_000, "{}", '{"process": 1}', "words\n1\n"):
        (tmp_path / ".x.lock").write_text(content)
        with only_writer(tmp_path / "x", "x"):
            pass


def test_one_that_waits_is_told_for_whom_and_goes_on(tmp_path):
    first, said = start(tmp_path / "x"), []
    threading.Timer(0.3, first.kill).start()
    with only_writer(tmp_path / "x", "the place", waiting=said.append):
        pass
    first.communicate()
    assert len(said) == 1
    assert f"is being written by another process (process {first.pid} on " in said[0]


@pytest.fixture
def without_flock(monkeypatch):
    """A file system such as a network's, that knows no locks."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return refuse


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_flock_the_file_itself_is_the_lock(tmp_path, without_flock):
    without_flock(errno.ENOSYS)
    with only_writer(tmp_path / "x", "x"):
        assert f"process {os.getpid()} on {socket.gethostname()}" in refused(tmp_path / "x")
    assert not list(tmp_path.iterdir())
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    (tmp_path / ".x.lock").write_text(f"{killed.pid}\n{socket.gethostname()}\n")
    with only_writer(tmp_path / "x", "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_lock_is_named(tmp_path, without_flock):
    without_flock(errno.ENOLCK)
    with (
        pytest.raises(ValueError, match=r"x '.*' is on a file system that cannot lock files"),
        only_writer(tmp_path / "x", "x"),
    ):
        pass


def test_one_at_a_time_among_many(tmp_path):
    program = (
        "import sys, time\nfrom titanslab.locks import only_writer\nplace = sys.argv[1]\nwon = 0\n"
        "end = time.monotonic() + 1.5\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with only_writer(place, 'x'):\n"
        "            number = int(open(place).read())\n"
        "            open(place, 'w').write(str(number + 1))\n"
        "            won += 1\n"
        "    except ValueError as error:\n"
        "        assert 'another process' in str(error)\n"
        "print(won)\n"
    )
    place = tmp_path / "count"
    place.write_text("0")
    begun = [subprocess.Popen([sys.executable, "-c", program, place], stdout=subprocess.PIPE) for _ in range(4)]
    won = [int(process.communicate()[0]) for process in begun]
    assert all(process.returncode == 0 for process in begun)
    assert int(place.read_text()) == sum(won) > 50
