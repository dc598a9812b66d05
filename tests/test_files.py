"""Files are written whole or not at all, and known by their contents, not by when they were written."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from titanslab.files import check_new_folder, check_writable, file_identity, naming, put_in_place, write_whole


def _folder(path):
    path.mkdir()
    (path / "a").write_text("1")
    (path / "inside").mkdir()
    (path / "inside" / "b").write_text("2")


@pytest.mark.parametrize("content", ["tea\nä", b"tea\n\xc3\xa4", lambda path: path.write_bytes(b"tea\n\xc3\xa4")])
def test_text_bytes_and_a_function_write_the_same_file(content, tmp_path):
    for _ in range(2):
        write_whole(tmp_path / "x.txt", content)
        assert (tmp_path / "x.txt").read_bytes() == b"tea\n\xc3\xa4"
        assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_whole_folder_is_written_once(tmp_path):
    write_whole(tmp_path / "made", _folder)
    assert (tmp_path / "made" / "inside" / "b").read_text() == "2"
    with pytest.raises(OSError):
        write_whole(tmp_path / "made", _folder)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("begin", [lambda path: path.write_text("half"), _folder])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(error, begin, tmp_path):
    def write(path):
        begin(path)
        raise error

    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)):
        write_whole(tmp_path / "x", write)
    assert (tmp_path / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_error_of_the_rename_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "x", "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a process's number cannot be asked for without a signal there")
def test_leftovers_of_killed_writers_go_and_those_of_others_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = tmp_path / f".x[1].{dead.pid}-7.tmp"
    others = [f".x[1].{os.getpid()}-1.tmp", f".x[1].y.{dead.pid}-7.tmp", ".x[1].notes.tmp", f".x1.{dead.pid}-7.tmp"]
    for name in [gone.name, *others]:
        (tmp_path / name).write_text("half")
    write_whole(tmp_path / "x[1]", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "x[1]"])


def test_the_last_file_is_put_in_place_last(tmp_path, monkeypatch):
    def make():
        (tmp_path / "made").mkdir()
        for name in ("config.json", "a", "z"):
            (tmp_path / "made" / name).write_text(name)

    make()
    put_in_place(tmp_path / "made", tmp_path / "new", last="config.json")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a", "config.json", "z"]
    make()
    moved, replace = [], os.replace
    monkeypatch.setattr("os.replace", lambda a, b: (moved.append(a.name), replace(a, b)))
    put_in_place(tmp_path / "made", tmp_path / "new", last="config.json")
    assert moved == ["a", "z", "config.json"]
    assert not (tmp_path / "made").exists()


def test_a_copy_is_the_same_file_and_a_change_is_not(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "a.txt").write_text("red\ngreen\n")
    (folder / "b.txt").write_text("")
    before, single = file_identity(folder), file_identity(folder / "a.txt")
    os.utime(folder / "a.txt", (1, 1))
    assert file_identity(folder) == before
    assert file_identity(shutil.copytree(folder, tmp_path / "copy")) == before
    (folder / "a.txt").write_text("red\nblack\n")
    assert file_identity(folder) != before
    assert file_identity(folder / "a.txt") != single
    assert file_identity(tmp_path / "nowhere") == [str(tmp_path / "nowhere")]
    assert file_identity(None) == ["None"]


def test_of_a_large_file_both_ends_count(tmp_path):
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(200 << 20)
    seen = [file_identity(path)]
    for place in (0, (200 << 20) - 1):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"x")
        seen.append(file_identity(path))
    assert len({str(identity) for identity in seen}) == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_an_error_that_names_the_file(error, tmp_path):
    def write(path):
        raise error

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "x.bin", write)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "x.bin")
    assert "free some" in caught.value.strerror


def test_an_error_of_the_system_in_another_library_names_the_file(tmp_path):
    with pytest.raises(PermissionError) as caught, naming(tmp_path / "x"):
        raise RuntimeError("Error while serializing: I/O error: Permission denied (os error 13)")
    assert caught.value.filename == str(tmp_path / "x")


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (ValueError("bad"), OSError("odd"), PermissionError(13, "Permission denied", "y")):
        with pytest.raises(type(error)) as caught, naming(tmp_path / "x"):
            raise error
        assert caught.value is error


def test_a_place_is_checked_where_it_will_be_made(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b", "--output")
    check_new_folder(tmp_path / "a", "--output")
    assert not (tmp_path / "a").exists()
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append(path))
    with pytest.raises(ValueError, match=r"--output '.*b' cannot be written: '.*' is read-only here"):
        check_writable(tmp_path / "a" / "b", "--output")
    assert asked == [tmp_path]
