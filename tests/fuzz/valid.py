"""Valid files of every kind, of one very small model."""

import contextlib
import json
import random
import shutil
from pathlib import Path

from .command import DONE, titans

TEXT, RECIPE, RUN, HALF, MODEL, ANSWERS = "text.txt", "recipe.toml", "run", "half", "model", "niah"
BOOK, HALF_BOOK, TALK, LINES = "book.memory", "half.memory", "talk.session", "lines.jsonl"
NIAH = ("evaluate", "niah", "--lengths", "600,700", "--samples", 2, "--max-new-tokens", 2)

SERIES, LONG, SERIES_RECIPE, FORECASTER = "series.csv", "long.csv", "series.toml", "forecaster"
LABELLED, LABELLED_FASTA, SEQUENCES_RECIPE, CLASSIFIER = "labelled.tsv", "labelled.fa", "sequences.toml", "classifier"
GENOME, GENOME_RECIPE, GENOME_MODEL = "genome.fa", "genome.toml", "genome"
BASE, GRAFT, GRAFT_BOOK = "base", "graft", "graft.memory"

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
    _series(folder)
    _sequences(folder)
    _graft(folder)
    lines = [{"text": f"Document {i}: the key lies behind door {i}. " * 3, "n": i} for i in range(20)]
    (folder / LINES).write_text("".join(json.dumps(line) + "\n" for line in lines))


TRAINING = """
[training]
steps = 2
batch_size = 4
warmup_steps = 1
log_every = 1
cpu = true
"""


def _series(folder: Path) -> None:
    """A wide and a long table of the same values, and a forecaster of the wide one."""
    rows = [(f"2026-01-{1 + i // 24:02}T{i % 24:02}:00:00", i % 7, i % 5 + i / 100) for i in range(160)]
    (folder / SERIES).write_text("date,sales,visits\n" + "".join(f"{t},{a},{b:.2f}\n" for t, a, b in rows))
    long = "".join(f"shop,{t},{a}\n" for t, a, _ in rows) + "".join(f"web,{t},{b:.2f}\n" for t, _, b in rows)
    (folder / LONG).write_text("unique_id,ds,y\n" + long)
    model = "[model]\ncontext_length = 16\nprediction_length = 4\nhidden_size = 8\nnum_hidden_layers = 1\n"
    model += "num_attention_heads = 1\nintermediate_size = 8\n"
    series = f'[series]\nfile = "{folder / SERIES}"\nsplit = "6:2:2"\n'
    (folder / SERIES_RECIPE).write_text(model + series + TRAINING)
    _do("train", folder / SERIES_RECIPE, "--output", folder / FORECASTER)


def _sequences(folder: Path) -> None:
    """Labelled sequences as a table and as FASTA, a genome, a classifier and a language model of it."""
    draw = random.Random(0).choices
    rows = [("".join(draw("ACGT", k=40)), i % 2) for i in range(40)]
    (folder / LABELLED).write_text("sequence\tlabel\n" + "".join(f"{s}\t{n}\n" for s, n in rows))
    (folder / LABELLED_FASTA).write_text("".join(f">s{i} label={n}\n{s}\n" for i, (s, n) in enumerate(rows)))
    (folder / GENOME).write_text("".join(f">{name}\n{''.join(draw('ACGT', k=400))}\n" for name in ("one", "two")))
    model = '[model]\npreset = "tiny"\nvariant = "lmm"\nhidden_size = 8\nnum_hidden_layers = 1\n'
    model += "num_attention_heads = 1\nintermediate_size = 8\nnum_persistent_tokens = 0\nmemory_depth = 1\n"
    (folder / SEQUENCES_RECIPE).write_text(f'{model}[sequences]\ntrain = "{folder / LABELLED}"\n{TRAINING}')
    data = f'[data]\ntrain = "{folder / GENOME}"\ntokenizer = "dna"\nsequence_length = 64\n'
    (folder / GENOME_RECIPE).write_text(model + data + TRAINING)
    _do("train", folder / SEQUENCES_RECIPE, "--output", folder / CLASSIFIER)
    _do("train", folder / GENOME_RECIPE, "--output", folder / GENOME_MODEL)


def _graft(folder: Path) -> None:
    """A small base with a graft, and a text read by it."""
    from graft_base import save_base

    save_base(folder / BASE)
    words = ["layers=all", "num_heads=2", "head_dim=8", "chunk_size=8", "control_documents=1", "control_tokens=40"]
    given = [word for setting in words for word in ("--set", f"graft.{setting}")]
    given += [
        *("--set", "data.sequence_length=24"),
        *("--set", "training.cpu=true"),
        *("--set", "training.batch_size=2"),
    ]
    _do(
        "graft",
        folder / BASE,
        "--train",
        folder / TEXT,
        "--output",
        folder / GRAFT,
        "--window",
        16,
        "--steps",
        2,
        *given,
    )
    _do("read", folder / TEXT, "--model", folder / GRAFT, "--save", folder / GRAFT_BOOK)


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
