"""Small generated texts that serve as haystacks and books."""

import random

import pytest

_SUBJECTS = ["The old miller", "Her younger brother", "A stranger from the coast", "The whole village", "Mr. Ames"]
_VERBS = ["had forgotten", "never quite believed", "wrote down", "remembered with some regret", "sold"]
_OBJECTS = [
    "the story of the broken bridge",
    "every word of the long letter",
    "what the river had taken away",
    "the map that hung behind the door",
    "a cart full of winter apples and rye",
]
_ENDS = ["before the snow came", "and said nothing", "because nobody had asked", "on the way to market", "at last"]


def make_prose(sentences: int, seed: int) -> str:
    """Sentences of at least eight words, in paragraphs of seven."""
    rng = random.Random(seed)
    text = []
    for number in range(sentences):
        parts = [rng.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _ENDS)]
        text.append(" ".join(parts) + ("." if number % 5 else "!") + ("\n\n" if number % 7 == 6 else " "))
    return "".join(text).strip()


@pytest.fixture(scope="session")
def prose() -> str:
    return make_prose(400, seed=1)


@pytest.fixture(scope="session")
def books() -> list[str]:
    return [make_prose(300, seed=2), make_prose(500, seed=3)]


@pytest.fixture(scope="session")
def bpe(prose):
    """A small byte-level BPE tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([prose], vocab_size=600, show_progress=False)
    return tokenizer


@pytest.fixture(scope="session")
def byte():
    from titanslab.data import byte_tokenizer

    return byte_tokenizer()


_BABI = {
    "qa1_single-supporting-fact": """1 John went to the office.
2 Mary moved to the garden.
3 Where is John? \toffice\t1
4 John travelled to the kitchen.
5 Where is John? \tkitchen\t4
1 Mary went to the hallway.
2 Where is Mary? \thallway\t1
""",
    "qa7_counting": """1 Mary got the milk there.
2 How many objects is Mary carrying? \tone\t1
3 Mary dropped the milk.
4 How many objects is Mary carrying? \tnone\t1 3
""",
    "qa8_lists-sets": """1 Mary got the milk there.
2 Mary took the apple.
3 What is Mary carrying? \tmilk,apple\t1 2
""",
}


@pytest.fixture(scope="session")
def babi(tmp_path_factory):
    """A folder of tiny bAbI files, with equal train and test splits."""
    folder = tmp_path_factory.mktemp("babi")
    for name, text in _BABI.items():
        for split in ("train", "test"):
            (folder / f"{name}_{split}.txt").write_text(text)
    return folder
