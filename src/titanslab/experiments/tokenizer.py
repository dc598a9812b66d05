"""The tokenizer of the long-context runs: a byte-level BPE of 2,048 pieces, made from the training texts."""

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY = 2048
CHARS = {"text": 5_000_000, "facts": 600_000}
REPEATS = 200  # so that the benchmark's own phrases get pieces of their own


def make_tokenizer(text: str, facts: str | None, folder: Path, stories: bool = False) -> Path:
    """Train on the first 5 MB of `text` (a file or folder), bAbI's training files in `facts` and fixed phrases.

    `stories` takes stories of our own instead of bAbI's files.

    Digits stay single. Written as a Hugging Face tokenizer into `folder`, which is left alone where it exists.
    """
    if (folder / "tokenizer.json").exists():
        return folder
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    told = _stories() if stories else _facts(facts) if facts else ()
    parts = [_text(text), told, _phrases()]
    tokenizer.train_from_iterator(itertools.chain(*parts), trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    draft = folder.with_name(folder.name + f".{os.getpid()}.part")
    whole.save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)
    return folder


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + 2000] for start in range(0, len(text), 2000))


def _text(path: str) -> Iterator[str]:
    from titanslab.data.text import iter_texts

    left = CHARS["text"]
    for text in iter_texts(path):
        yield from _pieces(text[:left])
        left -= len(text)
        if left <= 0:
            return


def _facts(folder: str) -> Iterator[str]:
    files = sorted(Path(folder).glob("qa[1-5]_*train.txt"))
    if not files:
        raise ValueError(f"facts folder {folder!r} holds no training file of qa1 to qa5, such as qa1_..._train.txt")
    for file in files:
        yield from _pieces(file.read_text(encoding="utf-8")[: CHARS["facts"] // len(files)])


def _stories() -> Iterator[str]:
    from titanslab.tasks.babilong.world import STORY_FACTS, story

    rng, left = random.Random(0), CHARS["facts"]
    while left > 0:
        for task in STORY_FACTS:
            question = story(task, 20, rng)[-1]
            yield " ".join((*question.facts, question.question, question.answer))
            left -= sum(map(len, question.facts))


def _phrases() -> Iterator[str]:
    """What every sample has in common: the prompt without key and value, and the line of single_1."""
    from titanslab.tasks.niah.haystack import NOISE_LINE
    from titanslab.tasks.niah.samples import Needle

    blank = "\n".join(Needle(kind, "", "").prompt(Needle(kind, "", "").sentence) for kind in ("number", "uuid"))
    for _ in range(REPEATS):
        yield NOISE_LINE
        yield blank
