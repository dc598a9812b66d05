"""A file is known by what it holds, not by when it was written."""

import os
import shutil

from titanslab.files import file_identity


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
