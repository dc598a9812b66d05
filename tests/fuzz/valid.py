"""Valid files of every kind, of one very small model."""

import contextlib
import json
import shutil
from pathlib import Path

from .command import DONE, titans

TEXT, RECIPE, RUN, HALF, MODEL, ANSWERS = "text.txt", "recipe.toml", "run", "half", "model", "niah"
BOOK, HALF_BOOK, TALK, LINES = "book.memory", "half.memory", "talk.session", "lines.jsonl"
NIAH = ("evaluate", "niah", "--lengths", "600,700", "--samples", 2, "--max-new-tokens", 2)

SMALL = """
[model]
preset = "tiny"
variant = "mac"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
segment_len = 8
chunk_size = 4
num_persistent_tokens = 2

[data]
train = "TEXT"
tokenizer = "byte"
sequence_length = 32
text_documents = "line"

[training]
steps = 6
batch_size = 2
save_every = 2
keep_checkpoints = 3
log_every = 1
seed = 3
cpu = true
"""


def make(folder: Path) -> None:
    """Write all files into a new folder."""
    folder.mkdir(parents=True)
    text = folder / TEXT
    text.write_text(
        "".join(f"Page {i}: Élise and the {i * 7 % 11}th key lay behind the old door.\n" for i in range(40))
    )
    (folder / RECIPE).write_text(SMALL.replace("TEXT", str(text)))
    _do("train", folder / RECIPE, "--output", folder / RUN)
    _interrupt(folder / RUN, folder / HALF)
    parts = shutil.ignore_patterns("checkpoints", "*.jsonl", "recipe.toml", "versions.json", "result.json", "loss.png")
    shutil.copytree(folder / RUN, folder / MODEL, ignore=parts)
    _do("read", text, "--model", folder / MODEL, "--save", folder / BOOK)
    _half_book(folder)
    _do("chat", "--model", folder / MODEL, "--session", folder / TALK, "--max-new-tokens", 2, stdin="one\ntwo\n")
    _do(*NIAH, "--model", folder / MODEL, "--output", folder / ANSWERS)
    lines = [{"text": f"Document {i}: the key lies behind door {i}. " * 3, "n": i} for i in range(20)]
    (folder / LINES).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _interrupt(run: Path, half: Path) -> None:
    """A copy of a run as a kill after its fifth step leaves it: checkpoints of steps 2 and 4, no model."""
    shutil.copytree(run, half)
    for path in half.iterdir():
        if path.is_file() and path.name not in ("recipe.toml", "versions.json", "metrics.jsonl"):
            path.unlink()
    shutil.rmtree(half / "checkpoints" / "checkpoint-6")
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text("".join(lines[:-1]))


def _half_book(folder: Path) -> None:
    """A memory file as a reading leaves it that was interrupted after its first piece."""
    from titanslab.reading.text import read_text
    from titanslab.runs.loading import open_model

    text, model = (folder / TEXT).resolve(), (folder / MODEL).resolve()
    network, tokenizer = open_model(str(model), "cpu")
    with contextlib.closing(read_text(network, text, tokenizer, piece_size=512)) as steps:
        step = next(steps)
    notes = {"path": str(text), "bytes": text.stat().st_size, "learn": None, "write_scale": None}
    notes |= {"start": step.place.start, "tokens": step.place.tokens, "finished": False}
    step.cache.save(folder / HALF_BOOK, network, {"model": str(model), "text": notes})


def _do(*words: object, stdin: str = "") -> None:
    answer = titans(*words, stdin=stdin)
    if answer.verdict != DONE:
        raise RuntimeError(f"titans {' '.join(map(str, words))}: {answer.text}")
