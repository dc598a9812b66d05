"""The trained models of the repository reach the scores of their cards on short samples."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import titanslab  # noqa: F401
from titanslab.evaluation.decode import GreedyAnswerer
from titanslab.quickstart.corpus import bundled_text
from titanslab.tasks.babilong.samples import BABILong, score
from titanslab.tasks.babilong.world import STORY_FACTS
from titanslab.tasks.niah.samples import NIAH, VARIANTS
from titanslab.tasks.niah.samples import score as niah_score
from titanslab.tasks.sample import TaskSample

FOLDER = Path(__file__).parents[2] / "checkpoints"


class Asked:
    """A model of the repository; a call returns the number of right answers per task at one length."""

    def __init__(self, name: str, new_tokens: int):
        self.tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
        self.model = AutoModelForCausalLM.from_pretrained(FOLDER / name).eval()
        assert self.model.dtype == torch.float32
        self.new_tokens = new_tokens
        self.tasks: list[BABILong | NIAH] = []

    def __call__(self, length: int, samples: int, learn: bool = True) -> dict[str, int]:
        ends = [self.tokenizer.eos_token_id]
        answer = GreedyAnswerer(self.model, max_new_tokens=self.new_tokens, piece=1024, eos_token_ids=ends, learn=learn)
        found = {}
        for task in self.tasks:
            made = [task.sample(length, n) for n in range(samples)]
            outputs = answer([self.tokenizer(one.prompt).input_ids for one in made])
            said = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in outputs]
            found[task.name] = sum(self.right(task, a, b) for a, b in zip(made, said, strict=True))
        return found

    @staticmethod
    def right(task: BABILong | NIAH, sample: TaskSample, output: str) -> bool:
        if isinstance(task, NIAH):
            return niah_score(sample, output)["contained"] == 1
        return score(sample, output)["official"] == 1


@pytest.fixture(scope="module")
def asked():
    babilong, books = Asked("babilong-mac", 3), [bundled_text()[1]]
    babilong.tasks = [BABILong(name, None, babilong.tokenizer, background=books) for name in sorted(STORY_FACTS)]
    return babilong


def test_it_answers_stories_alone(asked):
    found = asked(0, 12)
    assert sum(found.values()) >= 55, found
    assert min(found.values()) >= 9, found


def test_it_answers_over_books_from_its_memory(asked):
    found = asked(2000, 4)
    assert sum(found.values()) >= 17, found
    assert sum(asked(2000, 4, learn=False).values()) <= 11


def test_it_finds_needles_from_its_memory():
    niah, books = Asked("niah-mac", 48), [bundled_text()[1]]
    niah.tasks = [NIAH(name, niah.tokenizer, haystack=None if name == "single_1" else books) for name in VARIANTS]
    found = niah(2000, 4)
    assert sum(found.values()) >= 11, found
    assert sum(niah(2000, 4, learn=False).values()) == 0
