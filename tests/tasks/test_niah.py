"""S-NIAH against its published rules."""

import hashlib
import re
import uuid

import pytest

from titanslab.data.encode import TokenCounter
from titanslab.tasks.niah.haystack import NOISE_LINE
from titanslab.tasks.niah.samples import DEPTHS, NIAH, VARIANTS, Needle, score
from titanslab.tasks.sample import TaskSample


def _bytes(text: str) -> int:
    return len(text.encode())


def _words(text: str) -> int:
    return len(text.split())


def _task(variant, tokenizer, prose, **options):
    return NIAH(variant, tokenizer, haystack=None if variant == "single_1" else prose, **options)


def test_prompt_word_for_word():
    needle = Needle("number", "quiet-harbor", "4821093")
    asked = "the special magic number for quiet-harbor mentioned in the provided text"
    assert needle.prompt("CONTEXT") == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz "
        f"you about the number afterwards.\nCONTEXT\nWhat is {asked}? The {asked[4:]} is"
    )
    assert needle.sentence == "One of the special magic numbers for quiet-harbor is: 4821093."
    assert Needle("uuid", "a-b", "x").sentence == "One of the special magic uuids for a-b is: x."
    assert "A special magic uuid is hidden" in Needle("uuid", "a-b", "x").prompt("")


def test_depths_are_forty_even_ones():
    assert len(set(DEPTHS)) == 40
    assert (DEPTHS[0], DEPTHS[1], DEPTHS[20], DEPTHS[-1]) == (0, 3, 51, 100)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["byte", "bpe", "words"])
@pytest.mark.parametrize("length", [1000, 4096, 20_000])
def test_fits_and_fills_the_length(variant, kind, length, prose, bpe):
    tokenizer = {"byte": _bytes, "bpe": bpe, "words": _words}[kind]
    task = _task(variant, tokenizer, prose)
    count = TokenCounter(tokenizer).count
    sizes = [count(sample.prompt) + 128 for sample in [task.sample(length, n) for n in range(12)]]
    assert max(sizes) <= length
    # The prompt lacks at most one unit of haystack and the spread of keys and values.
    assert min(sizes) > length - (_bytes(NOISE_LINE) + 60 if kind == "byte" else 110)


@pytest.mark.parametrize("variant", VARIANTS)
def test_n_is_the_most_that_fits(variant, prose):
    task = _task(variant, _bytes, prose)
    units, probe = task.num_units(3000), task.probe

    def size(units):
        return _bytes(probe.prompt(task.haystack.insert(units, probe.sentence, 0.5)[0])) + 128

    assert size(units) <= 3000 < size(units + 1)


def test_single_1_is_lines_with_one_needle(prose):
    task = _task("single_1", _bytes, prose)
    seen = set()
    for sample in [task.sample(3000, n) for n in range(40)]:
        context = sample.prompt.split("afterwards.\n")[1].rsplit("\nWhat is", 1)[0]
        lines = context.split("\n")
        needle = f"One of the special magic numbers for {sample.info['key']} is: {sample.target}."
        assert lines.index(needle) == sample.info["position"] < sample.info["num_haystack"]
        assert sample.info["depth"] == pytest.approx(100 * sample.info["position"] / sample.info["num_haystack"])
        lines.remove(needle)
        assert lines == [NOISE_LINE] * sample.info["num_haystack"]
        assert re.fullmatch(r"[1-9]\d{6}", sample.target)
        seen.add(sample.info["position"])
    assert len(seen) > 10


@pytest.mark.parametrize("variant", ["single_2", "single_3"])
def test_running_text_holds_the_needle_between_sentences(variant, prose):
    task = _task(variant, _bytes, prose)
    depths = set()
    for sample in [task.sample(4000, n) for n in range(60)]:
        context = sample.prompt.split("afterwards.\n")[1].rsplit("\nWhat is", 1)[0]
        before, needle, after = re.fullmatch(
            r"(.*?) ?(One of the special magic \w+ for \S+ is: \S+\.) ?(.*)", context
        ).groups()
        assert sample.target in needle
        assert " ".join([before, after]).split() == prose.split()[: sample.info["num_haystack"]]
        assert not before or before[-1] in ".!" or sample.info["depth"] == 100  # the text ends anywhere
        assert not before or not before.endswith("Mr.")
        assert sample.info["depth"] in DEPTHS
        words = len(before.split()) / sample.info["num_haystack"]
        assert abs(words - sample.info["depth"] / 100) < 0.08
        depths.add(sample.info["depth"])
        if variant == "single_3":
            assert str(uuid.UUID(sample.target)) == sample.target
            assert uuid.UUID(sample.target).version == 4
    assert len(depths) > 20


def test_haystack_repeats_when_it_is_too_short(prose):
    short = " ".join(prose.split()[:50])
    sample = NIAH("single_2", _bytes, haystack=short).sample(5000, 0)
    context = sample.prompt.split("afterwards.\n")[1].rsplit("\nWhat is", 1)[0]
    context = context.replace(f"One of the special magic numbers for {sample.info['key']} is: {sample.target}.", "")
    words = context.split()
    assert words == (short.split() * 40)[: len(words)]
    assert len(words) > 400


@pytest.mark.parametrize(
    ("variant", "digest"),
    [("single_1", "beb0610f314671fb"), ("single_2", "7cb0193929e57126"), ("single_3", "2cf6de94496447fb")],
)
def test_the_same_seed_gives_the_same_bytes(variant, digest, prose):
    task = _task(variant, _bytes, prose)
    text = "\n".join(sample.to_json() for sample in [task.sample(2048, n, seed=42) for n in range(5)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_a_sample_depends_on_seed_length_and_index_alone(prose):
    first = [_task("single_2", _bytes, prose).sample(2048, n) for n in range(4)]
    again = _task("single_2", _bytes, prose)
    for n in range(3):
        again.sample(4096, n)
    assert again.sample(2048, 3) == first[3]
    assert again.sample(2048, 3, seed=43).target != first[3].target
    assert again.sample(4096, 3).target != first[3].target


def test_score_is_containment_without_case():
    def contained(target, output):
        return score(TaskSample("niah_single_1", 0, 0, "", target), output)["contained"]

    assert contained("4821093", " 4821093. The grass") == 1.0
    assert contained("4821093", "482109") == 0.0
    assert contained("ab12-CD", "it is AB12-cd") == 1.0


def test_wrong_arguments_say_what_to_do(prose):
    with pytest.raises(ValueError, match="single_1, single_2, single_3"):
        NIAH("single_4", _bytes)
    with pytest.raises(ValueError, match="name a file"):
        NIAH("single_2", _bytes)
    with pytest.raises(ValueError, match="leave it out"):
        NIAH("single_1", _bytes, haystack=prose)
    with pytest.raises(ValueError, match="at least"):
        NIAH("single_1", _bytes).sample(300, 0)
    with pytest.raises(ValueError, match="tokenizer is a int"):
        NIAH("single_1", 5)
