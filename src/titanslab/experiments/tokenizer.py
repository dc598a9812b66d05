"""Makes the tokenizer of a study: a byte-level BPE, trained on its training texts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titanslab.experiments.sections import TokenizerPlan

TEXT_CHARS = 5_000_000  # most characters of the training text
FACTS_CHARS = 600_000  # characters of stories
REPEATS = 200  # copies of the fixed phrases, which makes BPE merge them into few tokens


def make_tokenizer(plan: TokenizerPlan, files: Mapping[str, str], folder: Path, texts: Sequence[str] = ()) -> Path:
    """Train a tokenizer and save it in Hugging Face's format in `folder`. An existing tokenizer there is kept.

    Args:
        plan: size of the vocabulary, and further texts.
        files: `train_text` is a file or folder, of which the first 5 million characters are read; `train_facts` is
            bAbI's folder.
        folder: folder of the tokenizer.
        texts: files of training text in the place of `train_text`, of which 20 million characters are read, as many
            of each file.
    """
    if (folder / "tokenizer.json").exists():
        return folder
    from titanslab.data.bpe import train_bpe
    from titanslab.files import write_whole

    parts = [_beginnings(texts) if texts else _text(files["train_text"])]
    if "train_facts" in files:
        parts.append(_facts(files["train_facts"]))
    elif plan.stories:
        parts.append(_stories())
    if plan.phrases:
        parts.append(_phrases())
    made = train_bpe(itertools.chain(*parts), plan.vocabulary)
    write_whole(folder, made.save_pretrained)
    return folder


def _text(path: str) -> Iterator[str]:
    from titanslab.data.text import iter_texts

    left = TEXT_CHARS
    for text in iter_texts(path):
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _beginnings(texts: Sequence[str]) -> Iterator[str]:
    from titanslab.data import open_corpus
    from titanslab.data.bpe import TEXT_CHARS as MOST

    return open_corpus(list(texts), "--data", streaming=True).beginnings(MOST)


def _facts(folder: str) -> Iterator[str]:
    files = sorted(Path(folder).glob("qa[1-5]_*train.txt"))
    if not files:
        raise ValueError(f"facts folder {folder!r} holds no training file of qa1 to qa5, such as qa1_..._train.txt")
    for file in files:
        yield file.read_text(encoding="utf-8")[: FACTS_CHARS // len(files)]


def _stories() -> Iterator[str]:
    from titanslab.tasks.babilong.world import STORY_FACTS, story

    rng, left = random.Random(0), FACTS_CHARS
    while left > 0:
        for task in STORY_FACTS:
            question = story(task, 20, rng)[-1]
            yield " ".join((*question.facts, question.question, question.answer))
            left -= sum(map(len, question.facts))


def _phrases() -> Iterator[str]:
    """The prompt of S-NIAH with empty key and value, and the line that single_1 repeats as its haystack."""
    from titanslab.tasks.niah.haystack import NOISE_LINE
    from titanslab.tasks.niah.samples import Needle

    blank = "\n".join(Needle(kind, "", "").prompt(Needle(kind, "", "").sentence) for kind in ("number", "uuid"))
    for _ in range(REPEATS):
        yield NOISE_LINE
        yield blank
