"""`titans read`, `ask`, `chat` and `inspect`: memories in files, from the command line."""

import io
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from titanslab import TitansCache
from titanslab.runs.loading import load_model, load_model_tokenizer


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("".join(f"Room {i} held {i * 7 % 10} <chairs> & a dévot. " for i in range(12)))
    return path


@pytest.fixture(scope="session")
def memory(tmp_path_factory, trained, book):
    from titanslab.cli import main

    path = tmp_path_factory.mktemp("memory") / "book.memory"
    with pytest.raises(SystemExit) as stop:
        main(["read", str(book), "--model", str(trained), "--save", str(path)])
    assert stop.value.code == 0
    return path


def same(one, two) -> None:
    a, b = (TitansCache.load(path).tensors() for path in (one, two))
    for name in a:
        if "keys" not in name and "values" not in name:  # slots that a segment has not filled may hold anything
            torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-3)


def test_the_file_holds_what_the_model_read(memory, trained, book):
    model, tokenizer = load_model(trained), load_model_tokenizer(trained)
    cache = TitansCache.load(memory, model)
    ids = torch.tensor([[256, *book.read_bytes()]])
    expected = model.read(ids)
    assert cache.columns == ids.shape[1]
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(cache.tensors()[name], tensor, atol=1e-4, rtol=1e-3)
    from titanslab.reading.text import read_text

    steps = list(read_text(model, book, tokenizer, piece_size=100))
    told = [step.progress for step in steps]
    assert steps[-1].cache.columns == cache.columns == told[-1].tokens
    assert told[-1].bytes == told[-1].total_bytes == book.stat().st_size
    assert told[-1].seconds_left == 0
    assert all(progress.tokens_per_second > 0 for progress in told)


def test_compressed_and_in_two_parts(titans, trained, book, memory, tmp_path):
    data = book.read_bytes()
    cut = data.rindex(b" ", 0, 300)
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(data[:cut]))
    (tmp_path / "b.txt").write_bytes(data[cut:])
    first, second = tmp_path / "a.memory", tmp_path / "b.memory"
    code, out, err = titans("read", tmp_path / "a.txt.xz", "-m", trained, "--save", first)
    assert code == 0, err
    assert re.search(r"tokens read in .* s \([\d,]+ tokens/s\)", out)
    before = first.read_bytes()
    assert titans("read", tmp_path / "b.txt", "--from", first, "--save", second)[0] == 0  # the model is in the file
    same(memory, second)
    assert first.read_bytes() == before


def test_no_learn_keeps_the_memory(titans, memory, book, tmp_path):
    out = tmp_path / "frozen.memory"
    assert titans("read", book, "--from", memory, "--save", out, "--no-learn")[0] == 0
    a, b = TitansCache.load(memory), TitansCache.load(out)
    for one, two in zip(a.states, b.states, strict=True):
        mine, theirs = one.memory.memory.tensors(), two.memory.memory.tensors()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert b.columns > a.columns
    assert b.learn


def test_ctrl_c_keeps_what_was_read(titans, fails, trained, book, memory, tmp_path, monkeypatch):
    from titanslab.data import text as source
    from titanslab.reading.text import read_text

    monkeypatch.setattr(source, "PIECE_BYTES", 64)
    save = tmp_path / "part.memory"

    def interrupted(*arguments, **options):
        for number, step in enumerate(read_text(*arguments, **options)):
            if number == 5:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr("titanslab.reading.text.read_text", interrupted)
    code, _, err = titans("read", book, "-m", trained, "--save", save, "--piece-size", 40)
    assert code == 130
    assert f"200 tokens, kept in {save}; go on with: titans read" in err
    assert err.rstrip().endswith("--resume")
    monkeypatch.undo()
    monkeypatch.setattr(source, "PIECE_BYTES", 64)
    monkeypatch.setattr("titanslab.training.sources.tokens_folder", lambda: tmp_path)
    assert "unfinished reading" in fails("read", book, "-m", trained, "--save", save)
    other = tmp_path / "other.txt"
    other.write_text("x")
    assert "needs the same text" in fails("read", other, "--save", save, "--resume")
    command = err.split("go on with: ")[1].split()
    assert titans(*command[1:])[0] == 0
    same(memory, save)
    assert "no unfinished reading" in fails("read", book, "--save", save, "--resume")


def stop_at(monkeypatch, count):
    """Let the save of that number be interrupted."""
    whole, calls = TitansCache.save, []

    def save(self, *arguments, **options):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return whole(self, *arguments, **options)

    monkeypatch.setattr(TitansCache, "save", save)


def test_ctrl_c_in_the_last_save_loses_nothing(titans, trained, book, memory, tmp_path, monkeypatch):
    save = tmp_path / "m"
    stop_at(monkeypatch, 1)
    code, _, err = titans("read", book, "-m", trained, "--save", save)
    assert code == 130
    assert f"kept in {save}; go on with" in err
    assert TitansCache.header(save).notes["text"]["finished"] is False
    code, out, err = titans("read", book, "--save", save, "--resume")
    assert code == 0, err
    assert "nothing of" in out
    assert TitansCache.header(save).notes["text"]["finished"] is True
    same(memory, save)


@pytest.mark.parametrize("options", [("--no-learn",), ("--write-scale", "0.25")])
def test_a_resumed_reading_writes_as_it_began(titans, trained, book, tmp_path, options, monkeypatch):
    monkeypatch.setattr("titanslab.data.text.PIECE_BYTES", 64)
    whole, part = tmp_path / "whole", tmp_path / "part"
    more = ("--piece-size", "99", "--save-every", "0")
    assert titans("read", book, "-m", trained, "--save", whole, *more, *options)[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        code, _, err = titans("read", book, "-m", trained, "--save", part, *more, *options)
    assert code == 130
    assert "--piece-size 99 --save-every 0 --resume" in err
    assert titans("read", book, "--save", part, "--resume", "--piece-size", "99")[0] == 0
    same(whole, part)
    plain = tmp_path / "plain"
    assert titans("read", book, "-m", trained, "--save", plain)[0] == 0
    a, b = (TitansCache.load(path).states[0].memory.memory.weights[0] for path in (plain, part))
    assert not torch.allclose(a, b, atol=1e-4)


def test_time_left_counts_what_this_call_has_read(trained, tmp_path):
    from titanslab.reading.text import Place, read_text

    text = tmp_path / "long.txt"
    text.write_text("word " * 40_000)
    model, tokenizer = load_model(trained), load_model_tokenizer(trained)
    for begin in (0, 100_000):
        place = Place(begin, 0) if begin else None
        cache = model.read(torch.tensor([[1]])) if begin else None
        for number, step in enumerate(read_text(model, text, tokenizer, cache, place=place, piece_size=4096)):
            now = step.progress
            assert now.first_byte == begin
            assert abs(now.bytes - begin - now.tokens) <= 2  # a byte is a token
            left = now.seconds * (200_000 - now.bytes) / (now.bytes - begin)
            assert now.seconds_left == pytest.approx(left)
            if number == 3:
                break


def test_a_zst_file_that_is_cut_is_not_taken_for_whole(titans, fails, trained, book, memory, tmp_path):
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        from backports import zstd

    save, packed = tmp_path / "m", tmp_path / "a.zst"
    data = book.read_bytes()
    frames = [zstd.compress(part) for part in (data[:200], data[200:])]
    packed.write_bytes(b"".join(frames))
    assert titans("read", packed, "-m", trained, "--save", save)[0] == 0
    same(memory, save)
    for wrong in (b"".join(frames)[:-20], frames[0] + frames[1][:3], b"no frame at all"):
        packed.write_bytes(wrong)
        assert "does not decompress" in fails("read", packed, "-m", trained, "--save", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_real_signal(trained, book, tmp_path):
    text, save = tmp_path / "long.txt", tmp_path / "m"
    text.write_bytes(book.read_bytes() * 4000)
    command = [sys.executable, "-m", "titanslab.cli", "read", text, "--model", trained, "--save", save]
    options = ["--save-every", "0", "--piece-size", "64"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background inherits deaf ears
    words = [*map(str, command), *options]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        deadline = time.monotonic() + 60
        while not save.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            err = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "go on with: titans read" in err
    assert err.count("\n") == 1
    assert TitansCache.header(save).notes["text"]["finished"] is False


def test_ask(titans, memory, trained):
    words = ("ask", "--memory", memory, "Room 3?", "--max-new-tokens", "8")
    before = memory.read_bytes()
    code, out, err = titans(*words)
    assert code == 0, err
    assert titans(*words)[1] == out
    assert titans(*words, "--model", trained, "--seed", "4")[1] == out  # the likeliest tokens
    assert memory.read_bytes() == before
    from titanslab.reading.answer import Sampling, answer

    model, tokenizer = load_model(trained), load_model_tokenizer(trained)
    cache = TitansCache.load(memory, model)
    text, after = answer(model, tokenizer, cache, "\n\nRoom 3?\n", Sampling(8))
    assert out == text + "\n"
    assert after.columns == cache.columns + len("\n\nRoom 3?\n") + 8


def test_an_empty_question_is_refused(fails, memory):
    assert "the question is empty; ask one" in fails("ask", "--memory", memory, " ")


def test_ask_without_learning(titans, memory, tmp_path):
    kept = tmp_path / "after"
    code, _, err = titans("ask", "--memory", memory, "Room 3?", "--no-learn", "--max-new-tokens", "4", "--save", kept)
    assert code == 0, err
    a, b = TitansCache.load(memory), TitansCache.load(kept)
    weights = [cache.states[0].memory.memory.weights for cache in (a, b)]
    assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True))
    assert b.learn
    assert b.columns > a.columns


def test_chat_goes_on_after_a_restart(titans, fails, trained, memory, tmp_path, monkeypatch):
    options = ("--max-new-tokens", "6", "--temperature", "0")

    def say(session, text, *more):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code, out, err = titans("chat", "--session", session, *options, *more)
        assert code == 0, err
        return out

    whole, cut = tmp_path / "whole.session", tmp_path / "cut.session"
    together = say(whole, "one\n\ntwo\nthree", "--model", trained)
    apart = say(cut, "one\n", "--model", trained) + say(cut, "two\n") + say(cut, "three\n")
    assert apart == together
    same(whole, cut)
    assert TitansCache.header(cut).notes["turns"] == 3
    say(tmp_path / "book.session", "hello\n", "--from", memory)
    assert TitansCache.header(tmp_path / "book.session").columns > TitansCache.header(memory).columns
    assert "is new: give --model" in fails("chat", "--session", tmp_path / "none.session")
    assert "exists already" in fails("chat", "--session", cut, "--from", memory)
    before = memory.read_bytes()
    assert "is a memory, no session" in fails("chat", "--session", memory)
    assert memory.read_bytes() == before


def test_a_finished_memory_is_not_overwritten_without_a_word(titans, fails, trained, book, memory, tmp_path):
    save = tmp_path / "m"
    save.write_bytes(memory.read_bytes())
    before = save.read_bytes()
    said = "holds the memory of book.txt; give another name, or --overwrite to replace it"
    assert said in fails("read", book, "-m", trained, "--save", save)
    assert said in fails("read", book, "--from", save, "--save", save)
    assert said in fails("ask", "--memory", save, "x", "--save", save)
    assert save.read_bytes() == before
    assert titans("ask", "--memory", save, "x", "--max-new-tokens", "2", "--save", save, "--overwrite")[0] == 0
    assert save.read_bytes() != before
    assert "holds a memory; give" in fails("read", book, "-m", trained, "--save", save)
    assert titans("read", book, "-m", trained, "--save", save, "--overwrite")[0] == 0
    same(memory, save)


def test_the_flags_leave_a_frozen_memory_as_it_is(titans, memory, book, tmp_path):
    cache = TitansCache.load(memory)
    cache.learn, cache.write_scale = False, 0.5
    cache.save(tmp_path / "frozen", notes=TitansCache.header(memory).notes)
    for words in (
        ("read", book, "--from", tmp_path / "frozen"),
        ("ask", "--memory", tmp_path / "frozen", "x", "--max-new-tokens", "2"),
        ("ask", "--memory", tmp_path / "frozen", "x", "--max-new-tokens", "2", "--no-learn"),
    ):
        code, _, err = titans(*words, "--save", tmp_path / "after", "--overwrite")
        assert code == 0, err
        after = TitansCache.load(tmp_path / "after")
        assert (after.learn, after.write_scale) == (False, 0.5)
        weights = [c.states[0].memory.memory.weights for c in (cache, after)]
        assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True))


def test_inspect(titans, trained, book, memory, tmp_path):
    folder = tmp_path / "page"
    code, out, err = titans("inspect", book, "--model", trained, "--output", folder)
    assert code == 0, err
    assert str(folder / "inspect.html") in out
    page = (folder / "inspect.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert "data:image/png;base64," in page
    shown = re.search(r'<div id="text">(.*?)</div>', page, re.S).group(1)
    assert shown.count("<span>") == 1 + len(book.read_bytes())
    assert "&lt;" in shown
    assert "<chairs>" not in shown
    assert "<span>é</span>" in shown
    assert (folder / "inspect.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "inspect.json").read_text())
    tokens = 1 + len(book.read_bytes())
    assert [len(found[name][0]) for name in ("surprise", "theta", "eta", "alpha")] == [tokens] * 4
    assert found["places"][0] == 0
    assert found["places"][-1] == tokens
    assert found["moved"][0][0] == 0
    assert found["moved"][0][-1] > 0
    assert titans("inspect", book, "--memory", memory, "-o", tmp_path / "on", "--max-tokens", "20")[0] == 0
    assert json.loads((tmp_path / "on" / "inspect.json").read_text())["moved"][0][0] > 0


def test_inspect_of_odd_names_and_of_a_memory_that_blew_up(titans, fails, trained, memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("price $5_{ and $x.txt").write_text("a text")
    assert titans("inspect", "price $5_{ and $x.txt", "--model", trained)[0] == 0
    Path(".notes.txt").write_text("a text of several chunks, of which the first knows nothing yet")
    assert titans("inspect", ".notes.txt", "--model", trained)[0] == 0
    assert Path("notes-run-memory/inspect.html").exists()  # the text's name and the model's
    before = Path("notes-run-memory/inspect.html").read_bytes()
    assert "replace it with --overwrite" in fails("inspect", ".notes.txt", "--model", trained)
    assert Path("notes-run-memory/inspect.html").read_bytes() == before
    cache = TitansCache.load(memory)
    cache.states[0].memory.memory.weights[0][:] = 3e38  # finite itself, not what is computed with it
    cache.save("huge.memory", notes=TitansCache.header(memory).notes)
    code, _, err = titans("inspect", ".notes.txt", "--memory", "huge.memory", "--overwrite")
    assert code == 0, err
    assert "not finite" in err
    page = Path("notes-run-memory/inspect.html").read_text()
    numbers = re.search(r'id="data">(.*?)</script>', page, re.S).group(1)
    assert "NaN" not in numbers
    assert json.loads(numbers)["surprise"][0][-1] is None


def test_places_of_norms_are_tokens_read(trained):
    from titanslab.evaluation.trace import trace_memory

    model = load_model(trained)
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    trace = trace_memory(model, ids, model.read(ids[:, :2]), every=16)
    assert trace.places.tolist() == [0, 14, 30, 40]  # after the first, pieces begin where chunks do


def test_what_inspect_shows_is_what_the_memory_says(trained):
    from titanslab.evaluation.trace import memories_of, trace_memory

    model = load_model(trained).double()
    ids = torch.randint(0, 256, (1, 37), generator=torch.Generator().manual_seed(0))
    trace = trace_memory(model, ids, every=8)
    (memory,) = memories_of(model)
    seen = []
    # MAC writes its normalised y
    norm = model.model.layers[0].mixer.y_norm
    handle = norm.register_forward_hook(lambda _, __, y: seen.append(y))
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    theta, eta, alpha = memory.gates(torch.cat(seen, 1))
    for name, gate in (("theta", theta), ("eta", eta), ("alpha", alpha)):
        expected = gate[0].flatten(1).mean(1).detach()
        torch.testing.assert_close(torch.from_numpy(trace.per_token[name][0]), expected, atol=1e-6, rtol=1e-5)
    assert trace.places.tolist() == [0, 8, 16, 24, 32, 37]


def test_what_cannot_be_read_is_said_in_one_line(fails, titans, trained, book, memory, tmp_path):
    save = tmp_path / "m"
    assert "does not exist" in fails("read", tmp_path / "none.txt", "-m", trained, "--save", save)
    assert "--model is missing" in fails("read", book, "--save", save)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    assert "not text in UTF-8 (byte 3" in fails("read", tmp_path / "latin.txt", "-m", trained, "--save", save)
    (tmp_path / "cut.txt.xz").write_bytes(lzma.compress(book.read_bytes())[:-20])
    assert "does not decompress" in fails("read", tmp_path / "cut.txt.xz", "-m", trained, "--save", save)
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in fails("read", tmp_path / "empty.txt", "--from", memory, "--save", save)
    assert "is empty" in fails("read", tmp_path / "empty.txt", "-m", trained, "--save", save)
    assert "is empty" in fails("inspect", tmp_path / "empty.txt", "-m", trained)
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in fails("read", tmp_path / "pipe", "-m", trained, "--save", save)
    before = book.read_bytes()
    assert "no memory file" in fails("ask", "--memory", memory, "x", "--save", book)
    assert "the question is not text in UTF-8" in fails("ask", "--memory", memory, "caf\udce9")
    assert "does not exist" in fails("ask", "--memory", memory, "x", "--save", tmp_path / "no" / "m")
    assert book.read_bytes() == before
    assert "no memory file" in fails("read", book, "-m", trained, "--save", book)
    assert "does not exist" in fails("read", book, "-m", trained, "--save", tmp_path / "no" / "m")
    assert not save.exists()
    (tmp_path / "short.memory").write_bytes(memory.read_bytes()[:-50])
    assert "is damaged: it has" in fails("ask", "--memory", tmp_path / "short.memory", "x")
    assert "--template must hold" in fails("ask", "--memory", memory, "x", "--template", "y")
    assert "with learn=False nothing" in fails("read", book, "--save", save, "--no-learn", "--write-scale", "2")


def put_notes(memory, path, change, **metadata):
    """A copy of a memory file without its checksum, as a release before wrote it, with changed notes."""
    with safe_open(memory, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    notes = json.loads(header["notes"])
    change(notes)
    del header["checksum"]
    save_file(tensors, path, header | {"notes": json.dumps(notes)} | metadata)
    return path


def test_a_changed_byte_is_noticed_by_every_command(fails, memory, book, tmp_path):
    damaged = tmp_path / "m"
    data = bytearray(memory.read_bytes())
    data[-100] ^= 4
    damaged.write_bytes(data)
    words = f"{damaged} is damaged: its contents do not agree with its checksum; read the text again"
    assert words in fails("ask", "--memory", damaged, "x")
    assert words in fails("read", book, "--from", damaged, "--save", tmp_path / "n")
    assert words in fails("chat", "--from", damaged, "--session", tmp_path / "s")
    assert damaged.read_bytes() == data
    assert not (tmp_path / "n").exists()
    assert not (tmp_path / "s").exists()


@pytest.mark.filterwarnings("default")
def test_a_memory_without_a_checksum_is_read_with_one_line(titans, memory, tmp_path):
    code, _, err = titans("ask", "--memory", put_notes(memory, tmp_path / "m", lambda _: None), "x")
    assert code == 0
    lines = [line for line in err.splitlines() if "checksum" in line]
    assert lines == [
        f"titans: {tmp_path / 'm'} carries no checksum: an earlier release wrote it; saved again, it has one"
    ]


@pytest.mark.filterwarnings("ignore:.*carries no checksum")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tokens", -5, "notes of the reading: tokens must be a whole number of at least 0, got int -5"),
        ("tokens", "x", "tokens must be a whole number, got str 'x'"),
        ("tokens", 10**6, "the notes name 1,000,000 tokens of the text, and the memory has read"),
        ("tokens", None, "tokens must be a whole number"),
        ("start", -3, "start must be"),
        ("start", 1 << 40, "is shorter than the part that was read before"),
        ("start", 400, "of them were read before"),
        ("path", 5, "path must be text, got int 5"),
        ("finished", "no", "finished must be true or false"),
        ("write_scale", -1.0, "write_scale must be a number of at least 0"),
    ],
)
def test_notes_of_a_reading_are_checked(name, value, words, fails, memory, book, tmp_path):
    def change(notes):
        notes["text"] |= {"finished": False, name: value}

    path = put_notes(memory, tmp_path / "m", change)
    before = path.read_bytes()
    assert words in fails("read", book, "--resume", "--save", path)
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore:.*carries no checksum")
def test_a_position_after_the_last_token_is_refused(fails, memory, tmp_path):
    columns = TitansCache.header(memory).columns
    path = put_notes(memory, tmp_path / "m", lambda _: None, columns=str(columns - 1))
    words = f"m is at token {columns} of a document, and has read {columns - 1} tokens in all; read the text again"
    assert words in fails("ask", "--memory", path, "x")


def test_a_reading_that_blows_up_stops_and_keeps_the_memory_before(fails, titans, trained, book, tmp_path):
    model = load_model(trained)
    with torch.no_grad():
        model.model.embed_tokens.weight[ord("Z")] = float("nan")
    plain = book.read_text()[:270].replace("Z", "z")
    model.save_pretrained(tmp_path / "model")
    load_model_tokenizer(trained).save_pretrained(tmp_path / "model")
    (tmp_path / "t.txt").write_text(plain + "Z" + plain)
    command = ["read", tmp_path / "t.txt", "--model", tmp_path / "model", "--piece-size", "64"]
    error = fails(*command, "--save", tmp_path / "m")
    assert "made numbers that are not finite in 'layers.0" in error
    assert "between token 256 and 320; the memory before them is kept in" in error
    cache = TitansCache.load(tmp_path / "m")
    assert (cache.columns, cache.not_finite()) == (256, "")
    (tmp_path / "t.txt").write_text("Z" + plain)
    assert "between token 0 and 64; nothing was written" in fails(*command, "--save", tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_a_memory_of_another_model_is_refused(fails, trained, memory, tmp_path):
    model = load_model(trained)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    load_model_tokenizer(trained).save_pretrained(tmp_path)
    assert "other weights" in fails("ask", "--memory", memory, "x", "--model", tmp_path)


def test_a_file_that_is_no_memory_is_named_before_a_library_of_models_is_loaded(tmp_path, fails, trained, text_file):
    memory = tmp_path / "a.memory"
    for content, said in (
        (None, "does not exist (looked for"),
        (b"", "is no memory file; titans read TEXT --model RUN --save FILE makes one"),
        (b"Once upon a time", "is no memory file"),
        ((trained / "model.safetensors").read_bytes(), "is no memory file"),
    ):
        if content is not None:
            memory.write_bytes(content)
        assert f"--memory {str(memory)!r} {said}" in fails("ask", "--memory", memory, "Who?")
        assert f"--from {str(memory)!r} {said}" in fails("chat", "--from", memory)
        assert f"--from {str(memory)!r} {said}" in fails("read", text_file, "--from", memory, "--save", "x.memory")
    assert "is a folder or a device" in fails("inspect", text_file, "--memory", tmp_path)


def test_a_memory_file_that_was_cut_is_told_its_length(tmp_path, fails, titans, trained, text_file):
    memory = tmp_path / "a.memory"
    assert titans("read", text_file, "--model", trained, "--save", memory)[0] == 0
    content = memory.read_bytes()
    memory.write_bytes(content[:-100])
    line = fails("ask", "--memory", memory, "Who?")
    assert f"is damaged: it has {len(content) - 100:,} bytes instead of {len(content):,}; make it again" in line


def test_the_error_of_another_model_names_the_own_one(tmp_path, fails, titans, trained, talker, text_file):
    memory = tmp_path / "a.memory"
    assert titans("read", text_file, "--model", trained, "--save", memory)[0] == 0
    line = fails("ask", "--memory", memory, "Who?", "--model", talker)
    assert "is the cache of another model" in line
    assert line.endswith(f"; its model is {trained}")
    assert "the name of the model is empty" in fails("ask", "--memory", memory, "Who?", "--model", "")
