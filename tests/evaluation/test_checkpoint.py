"""The trained model in the repository: what its card says can be seen on short samples."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import titanslab  # noqa: F401
from titanslab.evaluation.decode import GreedyAnswerer
from titanslab.quickstart.corpus import bundled_text
from titanslab.tasks.babi_world import STORY_FACTS
from titanslab.tasks.babilong import BABILong

FOLDER = Path(__file__).parents[2] / "checkpoints" / "babilong-mac"


@pytest.fixture(scope="module")
def asked():
    """Of every task so many samples of a length are answered right."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    assert model.dtype == torch.float32
    books = [bundled_text()[1]]

    def right(length: int, samples: int, learn: bool = True) -> dict[str, int]:
        answer = GreedyAnswerer(
            model, max_new_tokens=3, piece=1024, eos_token_ids=[tokenizer.eos_token_id], learn=learn
        )
        found = {}
        for name in sorted(STORY_FACTS):
            task = BABILong(name, None, tokenizer, background=books)
            made = list(task.samples(length, samples))
            outputs = answer([tokenizer(one.prompt).input_ids for one in made])
            said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in outputs]
            found[name] = sum(task.score(a, b)["official"] == 1 for a, b in zip(made, said, strict=True))
        return found

    return right


def test_it_answers_stories_alone(asked):
    found = asked(0, 12)
    assert sum(found.values()) >= 55, found
    assert min(found.values()) >= 9, found


def test_it_answers_over_books_from_its_memory(asked):
    found = asked(2000, 4)
    assert sum(found.values()) >= 17, found
    assert sum(asked(2000, 4, learn=False).values()) <= 11
