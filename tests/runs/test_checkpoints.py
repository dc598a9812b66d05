"""Only whole checkpoints count."""

import json

import pytest

from titanslab.runs import checkpoints


def make(folder, step, *, mark=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(100))
    (path / "training_args.bin").write_bytes(b"pickle")
    if mark:
        checkpoints.mark_complete(path)
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert checkpoints.last_complete(tmp_path / "nothing") is None
    make(tmp_path, 5)
    whole = make(tmp_path, 10)
    make(tmp_path, 15, mark=False)
    (tmp_path / "checkpoint-note").mkdir()
    assert checkpoints.last_complete(tmp_path) == whole
    assert checkpoints.step_of(whole) == 10


def test_cut_off_or_missing_files_make_it_damaged(tmp_path):
    first, second, third = (make(tmp_path, step) for step in (1, 2, 3))
    (third / "model.safetensors").write_bytes(bytes(99))
    (second / "model.safetensors").unlink()
    assert checkpoints.last_complete(tmp_path) == first
    (first / checkpoints.MARKER).write_text("{")
    assert checkpoints.last_complete(tmp_path) is None


def test_marking_drops_the_pickled_arguments(tmp_path):
    path = make(tmp_path, 1)
    assert not (path / "training_args.bin").exists()


def test_half_written_ones_are_removed_and_damaged_ones_kept(tmp_path):
    whole, half, damaged = make(tmp_path, 1), make(tmp_path, 2, mark=False), make(tmp_path, 3)
    (damaged / "model.safetensors").write_bytes(b"")
    checkpoints.remove_half_written(tmp_path)
    assert whole.exists()
    assert not half.exists()
    assert damaged.exists()


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100, 20):
        make(tmp_path, step)
    checkpoints.keep_newest(tmp_path, 2)
    assert [path.name for path in checkpoints.all_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def damage(path):
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_is_found_by_its_checksum(tmp_path):
    path = make(tmp_path, 1)
    assert checkpoints.problem(path) == ""
    assert checkpoints.has_checksums(path)
    damage(path / "model.safetensors")
    assert checkpoints.is_complete(path)  # the size is the same
    assert checkpoints.problem(path) == "model.safetensors was changed after it was written: its checksum is another"


def test_a_marker_with_sizes_alone_still_counts(tmp_path):
    path = make(tmp_path, 1)
    (path / checkpoints.MARKER).write_text('{"model.safetensors": 100}')
    assert checkpoints.problem(path) == ""
    assert not checkpoints.has_checksums(path)
    damage(path / "model.safetensors")
    assert checkpoints.problem(path) == ""


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("", "is not valid JSON"),
        ("[]", "must be a table"),
        ("{}", "lists no file"),
        ('{"files": {}}', "lists no file"),
        ('{"model.safetensors": "100"}', "must be a whole number"),
        ('{"files": {"model.safetensors": {"bytes": null}}}', "must be a whole number"),
        ('{"files": {"other": {"bytes": 1}}}', "other is missing"),
        ('{"model.safetensors": 5}', "model.safetensors has 100 bytes in the place of 5"),
        (json.dumps({"\0": 5}), "cannot exist"),
        ("[" * 100_000, "tables and lists inside each other"),
    ],
)
def test_a_damaged_marker_says_why(tmp_path, marker, words):
    path = make(tmp_path, 1)
    (path / checkpoints.MARKER).write_text(marker)
    assert words in checkpoints.problem(path)
    assert not checkpoints.is_complete(path)
