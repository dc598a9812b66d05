"""BABILong against its published rules, and its metric on cases made by hand."""

import hashlib
import time

import pytest

from titanslab.data.encode import TokenCounter
from titanslab.tasks.babilong.babi import read_babi
from titanslab.tasks.babilong.background import Background
from titanslab.tasks.babilong.samples import TASKS, BABILong, score
from titanslab.tasks.sample import TaskSample
from titanslab.tasks.sentences import split_sentences


def _bytes(text: str) -> int:
    return len(text.encode())


def _score(task, target, output, question):
    return score(TaskSample(f"babilong_{task}", 0, 0, "", target, {"question": question}), output)


def test_a_question_has_all_earlier_statements_of_its_story(babi):
    questions = read_babi(babi / "qa1_single-supporting-fact_test.txt")
    assert [q.answer for q in questions] == ["office", "kitchen", "hallway"]
    assert questions[1].facts == (
        "John went to the office.",
        "Mary moved to the garden.",
        "John travelled to the kitchen.",
    )
    assert questions[1].supporting == (2,)
    assert questions[2].facts == ("Mary went to the hallway.",)
    assert questions[2].question == "Where is Mary?"
    assert [q.earlier for q in questions] == [(), (questions[0],), ()]


def test_length_0_is_facts_alone(babi):
    prompts = {s.prompt for s in [BABILong("qa1", babi, _bytes).sample(0, n) for n in range(3)]}
    assert "Mary went to the hallway. Where is Mary?" in prompts
    assert len(prompts) == 3


@pytest.mark.parametrize("length", [300, 2000, 50_000])
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_facts_in_order_between_sentences(length, kind, babi, books, bpe):
    tokenizer = _bytes if kind == "byte" else bpe
    count = TokenCounter(tokenizer).count
    task = BABILong("qa1", babi, tokenizer, background=books)
    known = {s for book in books for s in split_sentences(book)}
    for sample in [task.sample(length, n) for n in range(6)]:
        question = next(q for q in task.questions if sample.prompt.endswith(q.question) and
                        all(f in sample.prompt for f in q.facts) and q.answer == sample.target)  # fmt: skip
        context = sample.prompt.removesuffix(" " + question.question)
        assert length - 30 <= count(context) <= length
        rest = context
        for fact, position in zip(question.facts, sample.info["fact_positions"], strict=True):
            before, _, after = rest.partition(fact)
            # The last sentence is cut to fill the length, so it may lack a full stop.
            assert position == sample.info["num_sentences"] or before.strip() == "" or before[-2:] in (". ", "! ")
            rest = after
        for fact in question.facts:
            context = context.replace(fact, "", 1)
        # "Mr. Ames" must not be split, and all sentences except the last, which is cut, come from the books.
        for piece in split_sentences(context)[:-1]:
            assert piece in known
        assert len(sample.info["fact_positions"]) == len(question.facts)
        assert sample.info["fact_positions"] == sorted(sample.info["fact_positions"])


def test_facts_spread_over_the_whole_text(babi, books):
    task = BABILong("qa1", babi, _bytes, background=books)
    shares = [
        position / sample.info["num_sentences"]
        for sample in [task.sample(8000, n) for n in range(80)]
        for position in sample.info["fact_positions"]
    ]
    for tenth in range(10):
        assert sum(tenth / 10 <= share < (tenth + 1) / 10 for share in shares) > 2


def test_background_leaves_out_short_sentences(books):
    import random

    text = "Too short. " + books[0]
    background = Background([text], TokenCounter(lambda t: len(t.split())), min_tokens=10)
    drawn = background.draw(random.Random(0), 4000)
    assert "Too short." not in drawn
    assert all(len(sentence.split()) >= 10 for sentence in drawn[:-1])
    assert 3990 <= sum(len(sentence.split()) for sentence in drawn) <= 4000


def test_decoys_are_sentences_with_each_word_alike(books):
    import random

    rare = "Maryland is no word of theirs, yet here it stands. A letter for Mary lay in the drawer for years on end. "
    also = "They had walked to the garden in the rain, three times that day. Mary slept. "
    counter = TokenCounter(lambda t: len(t.split()))
    options = {"decoys": 0.25, "decoy_words": ("Mary", "garden", "nowhere at all")}
    background = Background([rare + books[0], also + books[0]], counter, **options)
    counts = {"Maryland": 0, "Mary lay": 0, "garden": 0}
    for seed in range(20):
        drawn = background.draw(random.Random(seed), 1000)
        assert drawn == background.draw(random.Random(seed), 1000)
        assert "Mary slept." not in drawn, "decoys are as long as other sentences"
        assert 980 <= sum(len(sentence.split()) for sentence in drawn) <= 1000
        for word in counts:
            counts[word] += sum(word in sentence for sentence in drawn)
    assert counts["Maryland"] <= 4, "part of another word is none"
    assert 250 < counts["Mary lay"] + counts["garden"] < 450, "a quarter of 20,000 tokens in sentences of 11 and 13"
    assert 0.7 < counts["Mary lay"] / counts["garden"] < 1.4
    # Decoys stand between the other sentences and not next to each other.
    assert max(drawn.index(s) for s in drawn if "Mary" in s or "garden" in s) > 5

    with pytest.raises(ValueError, match=r"decoys is 1\.5; it must be 0 to 1"):
        Background(books, counter, decoys=1.5, decoy_words=("Mary",))
    with pytest.raises(ValueError, match=r"decoys is 0\.5; .* without decoy_words"):
        Background(books, counter, decoys=0.5)


def test_the_same_seed_gives_the_same_bytes(babi, books):
    task = BABILong("qa1", babi, _bytes, background=books)
    text = "\n".join(sample.to_json() for sample in [task.sample(1500, n, seed=42) for n in range(5)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "40c4579193adccf6"
    other = BABILong("qa1", babi, _bytes, background=books)
    assert other.sample(1500, 4) == task.sample(1500, 4)
    assert other.sample(1500, 4, seed=1).prompt != other.sample(1500, 4).prompt


def test_time_grows_with_length_and_not_faster(babi, books):
    task = BABILong("qa1", babi, _bytes, background=books)
    task.sample(200_000, 0)

    def seconds(length):
        best = 1e9
        for index in range(3):
            begun = time.perf_counter()
            task.sample(length, index)
            best = min(best, time.perf_counter() - begun)
        return best

    assert seconds(8_000_000) < 40 * 4 * max(seconds(200_000), 1e-3)


@pytest.mark.parametrize(
    ("task", "target", "output", "question", "right"),
    [
        ("qa1", "kitchen", " Kitchen. Mary went to the office", "Where is John?", True),
        ("qa1", "kitchen", "the kitchen or the garden", "Where is John?", False),
        ("qa1", "kitchen", "", "Where is John?", False),
        ("qa1", "kitchen", "I do not know. kitchen", "Where is John?", False),
        ("qa2", "garden", "The garden\nWhere is", "Where is the milk?", True),
        # A label of the question counts neither as the answer nor as a wrong one.
        ("qa4", "office", "the bedroom is south of the office", "What is the bedroom south of?", True),
        ("qa4", "bedroom", "bedroom", "What is the bedroom south of?", False),
        ("qa5", "Fred", "Jeff gave it to Fred", "Who did Jeff give the milk to?", True),
        ("qa5", "Fred", "fred and bill", "Who did Jeff give the milk to?", False),
        ("qa6", "yes", "Yes", "Is John in the garden?", True),
        ("qa7", "two", "two", "How many objects is Mary carrying?", True),
        ("qa7", "one", "one", "How many objects is Mary carrying?", True),
        ("qa8", "apple,milk", "milk, apple", "What is Mary carrying?", True),
        ("qa8", "apple,milk", "milk", "What is Mary carrying?", False),
        ("qa8", "apple,milk", "milk, apple, football", "What is Mary carrying?", False),
        ("qa8", "nothing", "nothing", "What is Mary carrying?", True),
        ("qa10", "maybe", "maybe", "Is Bill in the park?", True),
        ("qa10", "maybe", "maybe yes", "Is Bill in the park?", False),
    ],
)
def test_metric(task, target, output, question, right):
    expected = {"official": float(right), "corrected": float(right)}
    assert _score(task, target, output, question) == expected


def test_none_scores_only_when_corrected():
    question = "How many objects is Mary carrying?"
    assert _score("qa7", "none", "None.", question) == {"official": 0.0, "corrected": 1.0}
    assert _score("qa7", "none", "none or one", question) == {"official": 0.0, "corrected": 0.0}
    assert _score("qa7", "one", "none", question) == {"official": 0.0, "corrected": 0.0}


def test_every_answer_scores_as_itself(babi):
    for name in ("qa1", "qa7", "qa8"):
        task = BABILong(name, babi, _bytes)
        for sample in [task.sample(0, n) for n in range(len(task.questions))]:
            assert score(sample, sample.target)["corrected"] == 1.0


def test_wrong_arguments_say_what_to_do(babi, books, tmp_path):
    assert TASKS[-1] == "qa10"
    with pytest.raises(ValueError, match="qa1, qa2"):
        BABILong("qa11", babi, _bytes)
    with pytest.raises(FileNotFoundError, match="qa2_"):
        BABILong("qa2", babi, _bytes)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        BABILong("qa1", tmp_path / "nowhere", _bytes)
    with pytest.raises(ValueError, match="background is missing"):
        BABILong("qa1", babi, _bytes).sample(1000, 0)
    (tmp_path / "qa1_x_test.txt").write_text("not bAbI\n")
    with pytest.raises(ValueError, match="line 1"):
        BABILong("qa1", tmp_path, _bytes)
    words = TokenCounter(lambda text: len(text.split()))
    task = BABILong("qa1", babi, words, background=["Short. Very short."])
    with pytest.raises(ValueError, match="no sentences of 10 tokens"):
        task.sample(100, 0)
