"""Generated stories against a reader that has their sentences alone."""

import hashlib
import random
import re

import pytest

from titanslab.tasks.babilong.samples import BABILong, score
from titanslab.tasks.babilong.world import GIVERS, PEOPLE, PLACES, SIDES, SIGNS, STORY_FACTS, THINGS, Asked, story
from titanslab.tasks.mixture import Mixture
from titanslab.tasks.sample import TaskSample

PLACE, THING = "|".join(PLACES), "|".join(THINGS)
MOVED = re.compile(rf"(\w+) (?:moved to|went to|went back to|journeyed to|travelled to) the ({PLACE})\.")
TOOK = re.compile(rf"(\w+) (?:picked up|got|grabbed|took) the ({THING})(?: there)?\.")
LEFT = re.compile(rf"(\w+) (?:dropped|left|discarded|put down) the ({THING})(?: there)?\.")
GAVE = re.compile(rf"(\w+) (?:gave|passed|handed) the ({THING}) to (\w+)\.")
IS = re.compile(rf"The ({PLACE}) is (north|south|east|west) of the ({PLACE})\.")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def answers(question, facts):
    """All answers that follow from the sentences, by rules written from bAbI's files."""
    place, carries, went, gifts = {}, {}, {thing: [] for thing in THINGS}, []

    def see(thing, where):
        if where and went[thing][-1:] != [where]:
            went[thing].append(where)

    for fact in facts:
        if found := MOVED.fullmatch(fact):
            place[found[1]] = found[2]
            for thing in [t for t, who in carries.items() if who == found[1]]:
                see(thing, found[2])
        elif found := TOOK.fullmatch(fact):
            assert found[2] not in carries
            carries[found[2]] = found[1]
            see(found[2], place.get(found[1]))
        elif found := LEFT.fullmatch(fact):
            assert carries.pop(found[2]) == found[1]
        elif found := GAVE.fullmatch(fact):
            assert carries[found[2]] == found[1] != found[3]
            carries[found[2]] = found[3]
            gifts.append(found.groups())
        else:
            raise AssertionError(f"no sentence of bAbI: {fact}")
    if found := re.fullmatch(r"Who has the (\w+)\?", question):
        return [carries[found[1]]]
    if found := re.fullmatch(r"Where is the (\w+)\?", question):
        return went[found[1]][-1:]
    if found := re.fullmatch(r"Where is (\w+)\?", question):
        return [place[found[1]]]
    if found := re.fullmatch(r"Where was ([A-Z]\w+) before the (\w+)\?", question):
        path = [walk[2] for fact in facts if (walk := MOVED.fullmatch(fact)) and walk[1] == found[1]]
        return [path[len(path) - 2 - path[::-1].index(found[2])]]
    if found := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        path = went[found[1]]
        return [path[len(path) - 2 - path[::-1].index(found[2])]]
    patterns = (
        (r"What did (?P<a>\w+) give to (?P<c>\w+)\?", 1),
        (r"Who gave the (?P<b>\w+) to (?P<c>\w+)\?", 0),
        (r"Who gave the (?P<b>\w+)\?", 0),
        (r"Who received the (?P<b>\w+)\?", 2),
        (r"Who did (?P<a>\w+) give the (?P<b>\w+) to\?", 2),
    )
    for pattern, asked in patterns:
        if found := re.fullmatch(pattern, question):
            wanted = found.groupdict()
            like = [g for g in gifts if all(g["abc".index(k)] == v for k, v in wanted.items())]
            return [like[-1][asked]]
    raise AssertionError(f"no question of bAbI: {question}")


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3", "qa5"])
def test_every_answer_follows_from_the_sentences(task):
    rng = random.Random(task)
    for facts in [1, 2, 5, 20, 60, 200] * 10:
        questions = story(task, facts, rng)
        assert len(questions[-1].facts) >= facts
        for i, one in enumerate(questions):
            assert answers(one.question, one.facts) == [one.answer]
            assert one.facts == questions[-1].facts[: len(one.facts)]
            assert one.earlier == tuple(questions[:i])
            assert all(0 <= at < len(one.facts) for at in one.supporting)
            sample = TaskSample(f"babilong_{task}", 0, 0, "", one.answer, {"question": one.question})
            assert score(sample, f" {one.answer}.") == {"official": 1.0, "corrected": 1.0}


@pytest.mark.parametrize(
    ("task", "steps", "kinds"),
    [
        ("qa2", (), {"Who has the", "Where is X", "Where is the"}),
        ("qa2", ("holder",), {"Who has the", "Where is the"}),
        ("qa3", (), {"Who has the", "Where is X", "Where is the", "Where was the", "Where was X"}),
        ("qa3", ("before",), {"Where was the", "Where was X"}),
        ("qa5", ("holder", "person"), {"Who has the", "gift"}),
        ("qa1", (), {"Where is X"}),
        ("qa3", ("thing",), {"Where is the", "Where was the"}),
    ],
)
def test_questions_on_a_step_have_its_answer_too(task, steps, kinds):
    rng = random.Random(task)
    seen = set()
    for facts in [5, 20, 60] * 10:
        questions = story(task, facts, rng, Asked(step_questions=0.7, steps=steps))
        for one in questions:
            assert answers(one.question, one.facts) == [one.answer]
            kind = re.sub(r"Where (is|was) [A-Z]\w+", r"Where \1 X", one.question)
            known = ("Who has the", "Where is the", "Where is X", "Where was the", "Where was X")
            kind = next((k for k in known if k in kind), "gift")
            seen.add(kind)
            if kind == "Who has the":
                assert one.answer in one.facts[one.supporting[0]]
        own = {"qa1": "Where is", "qa2": "Where is the", "qa3": "Where was the", "qa5": "W"}[task]
        assert questions[-1].question.startswith(own), "the last question is the task's own"
        assert "Who has" not in questions[-1].question
    assert seen == kinds


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3", "qa5"])
def test_hints_are_steps_that_the_sentences_allow(task):
    rng = random.Random(task)
    seen = set()
    for facts in [5, 20, 60] * 10:
        last = story(task, facts, rng, Asked(step_questions=0.5))[-1]
        assert len(last.fact_hints) == len(last.facts)
        place, came, carries, touched = {}, {}, {}, {}
        for number, (fact, hints) in enumerate(zip(last.facts, last.fact_hints, strict=True)):
            person = fact.split()[0]
            where = place.get(person)
            told = {(1, where, 0)} if where else set()
            if found := MOVED.fullmatch(fact):
                if (person, found[2]) in SIGNS:  # of the people of qa5 only Mary has signs
                    told |= {(2, SIGNS[person, found[2]], len(fact.split()) - 1)}
                if (person, found[2]) in came:
                    told |= {(3, came[person, found[2]], len(fact.split()) - 1)}
                if where:
                    told |= {(2, where, -1)}
                    came[person, found[2]] = where
                place[person] = found[2]
            elif found := LEFT.fullmatch(fact):
                touched[found[2]] = person
                carries[found[2]] = where
                told |= {(2, where, -1)} if where else set()
            elif found := TOOK.fullmatch(fact):
                touched[found[2]] = carries[found[2]] = person
            elif found := GAVE.fullmatch(fact):
                touched[found[2]] = carries[found[2]] = found[3]
            assert {(hint.block, hint.target, hint.word) for hint in hints} == told
            seen |= {(block, "place" if word > 0 else word) for block, _, word in told}
            for one in (*last.earlier, last):
                thing = re.search(THING, one.question)
                said = [(hint.block, hint.target) for hint in one.hints]
                assert {hint.word for hint in one.hints} <= {-1}
                before = re.fullmatch(r"Where was ([A-Z]\w+) before the (\w+)\?", one.question)
                if len(one.facts) == number + 1 and before:
                    assert said == [(2, SIGNS[before.groups()]), (3, one.answer)]
                    continue
                if len(one.facts) != number + 1 or (task == "qa5" and "Who has" not in one.question) or not thing:
                    assert len(one.facts) != number + 1 or one.hints == ()
                    continue
                seen.add("question")
                assert said[0] == (1, touched[thing[0]])
                if "before" in one.question:
                    place_asked = re.search(r"(\w+)\?", one.question)[1]
                    assert said[1:] == [(2, SIGNS[touched[thing[0]], place_asked]), (3, one.answer)]
                else:  # the place of a thing that was dropped by a person without a stated place is its place before
                    assert said[1:] == [(2, carries[thing[0]] or one.answer)]
    assert seen == {(1, 0), (2, -1), (2, "place"), (3, "place")} | ({"question"} if task != "qa1" else set())


def test_stories_stay_what_they_were():
    made = [
        (one.facts, one.question, one.answer, one.supporting)
        for task in sorted(STORY_FACTS)
        for one in story(task, 2 if task == "qa4" else 30, random.Random(7))
    ]
    assert hashlib.sha256(repr(made).encode()).hexdigest().startswith("c3fe8c35001eff2e")


def test_supporting_facts_alone_give_the_answer():
    rng = random.Random(0)
    for task in ("qa1", "qa5"):
        for _ in range(50):
            one = story(task, 40, rng)[-1]
            assert one.answer in one.facts[one.supporting[0]]
    for _ in range(100):
        one = story("qa2", 40, rng)[-1]
        assert any(one.answer in one.facts[at] for at in one.supporting)


def test_directions_hold_on_a_map():
    rng = random.Random(0)
    asked = set()
    for facts in (2, 9) * 150:
        questions = story("qa4", facts, rng)
        assert len(questions[-1].facts) == facts + facts % 2
        for i, one in enumerate(questions):
            assert len(one.facts) == (2 if facts == 2 else 2 * (i + 1)), "of several maps, a question on each"
            told = [IS.fullmatch(fact).groups() for fact in one.facts[-2:]]
            known = {(side, b): a for a, side, b in told} | {(OPPOSITE[side], a): b for a, side, b in told}
            if found := re.fullmatch(r"What is (\w+) of the (\w+)\?", one.question):
                assert known[found[1], found[2]] == one.answer
            else:
                found = re.fullmatch(r"What is the (\w+) (\w+) of\?", one.question)
                assert known[OPPOSITE[found[2]], found[1]] == one.answer
            assert IS.fullmatch(one.facts[one.supporting[0]])[1] == one.answer
            signs = {SIDES[place]: answer for place, answer in known.items()}
            assert [(hint.block, hint.word) for hint in one.hints] == [(1, -1)]
            assert signs[one.hints[0].target] == one.answer
            for (a, _, b), hints in zip(told, one.fact_hints[-2:], strict=True):
                assert [(hint.block, hint.word) for hint in hints] == [(1, 3), (1, -1)]
                assert [signs[hint.target] for hint in hints] == [b, a]
            assert len(one.fact_hints) == len(one.facts)
            assert one.earlier == tuple(questions[:i])
            assert len({name for a, _, b in told for name in (a, b)}) == 3
            asked.add(one.question.split()[2] == "the")
        assert facts != 2 or len({one.question for one in questions}) == 4
    assert asked == {True, False}


@pytest.mark.parametrize(
    ("task", "facts", "shares"),
    # Shares of walks, takes, drops and gifts in bAbI's en-10k training files (qa3: en); the stories are within 0.07.
    [("qa2", 22, (0.65, 0.20, 0.15, 0)), ("qa3", 75, (0.64, 0.19, 0.17, 0)), ("qa5", 27, (0.56, 0.17, 0.12, 0.15))],
)
def test_sentences_are_as_frequent_as_in_the_published_files(task, facts, shares):
    rng = random.Random(0)
    seen = [fact for _ in range(200) for fact in story(task, facts, rng, Asked(0.25))[-1].facts]
    for kind, share in zip((MOVED, TOOK, LEFT, GAVE), shares, strict=True):
        assert abs(sum(bool(kind.fullmatch(fact)) for fact in seen) / len(seen) - share) < 0.07
    people = GIVERS if task == "qa5" else PEOPLE
    assert {fact.split()[0] for fact in seen} == set(people)


@pytest.mark.parametrize("contested", [0.0, 1.0])
def test_contested_places_are_asked_for(contested):
    """The answer of a reader that stores only the last visitor of each place: wrong for every contested question."""
    rng = random.Random(0)
    simple, wrong = 0, {"thing": 0, "person": 0}
    for _ in range(60):
        for one in story("qa3", 60, rng, Asked(0.5, 0.5, ("before",), contested))[-8:]:
            assert answers(one.question, one.facts) == [one.answer]
            place, latest = {}, {}
            for fact in one.facts:
                if found := MOVED.fullmatch(fact):
                    if found[1] in place:
                        latest[found[2]] = place[found[1]]
                    place[found[1]] = found[2]
            asked = re.fullmatch(r"Where was (the )?\w+ before the (\w+)\?", one.question)
            kind = "thing" if asked[1] else "person"
            wrong[kind] += latest.get(asked[2]) != one.answer
            simple += latest.get(asked[2]) == one.answer
    if contested:
        assert simple < 0.15 * sum(wrong.values())
    else:
        assert simple > 0.3 * sum(wrong.values())
    assert min(wrong.values()) > 20


def test_a_seed_is_a_story():
    assert story("qa3", 30, random.Random(7)) == story("qa3", 30, random.Random(7))
    assert story("qa3", 30, random.Random(7)) != story("qa3", 30, random.Random(8))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="task is 'qa7'; stories are made for qa1, qa2, qa3, qa4, qa5"):
        story("qa7", 3, random.Random(0))
    with pytest.raises(ValueError, match="facts is 0; it must be at least 1"):
        story("qa1", 0, random.Random(0))
    with pytest.raises(ValueError, match=r"step_questions is 1\.5; it must be 0 to 1"):
        Asked(step_questions=1.5)
    with pytest.raises(ValueError, match=r"contested is -1; it must be 0 to 1"):
        Asked(contested=-1)
    with pytest.raises(ValueError, match=r"steps holds 'hold'; it may hold before, holder, person, thing"):
        Asked(step_questions=0.5, steps=("hold",))
    with pytest.raises(ValueError, match=r"steps is holder and step_questions is 0; raise it, or leave steps out"):
        Asked(steps=("holder",))
    with pytest.raises(ValueError, match=r"facts is None; stories are made for .* qa7 needs bAbI's folder"):
        BABILong("qa7", None, len)


@pytest.mark.parametrize("task", sorted(STORY_FACTS))
def test_samples_without_files(task, books):
    made = BABILong(task, None, lambda text: len(text.encode()), background=books)
    short, again = [made.sample(0, n) for n in range(4)], [made.sample(0, n) for n in range(4)]
    assert short == again
    assert len({sample.prompt for sample in short}) == 4
    longer = [made.sample(20_000, n) for n in range(4)]
    assert [s.target for s in longer] == [s.target for s in short]  # the same questions at every length
    assert all(len(sample.prompt) > 15_000 for sample in longer)


def test_rows_without_files_hold_many_answers(byte, tmp_path, books):
    (tmp_path / "books.txt").write_text("\n\n".join(books), encoding="utf-8")
    background = str(tmp_path / "books.txt")
    rows = Mixture("babilong", byte, 3000, 0, tasks=["qa1", "qa2"], whole_stories=1.0, background=background)
    scored = 0
    for index in range(8):
        row = rows[index]
        scored += int((row["labels"][1:] != -100).sum() > 0)
        starts = (row["labels"][1:] != -100) & (row["labels"][:-1] == -100)
        text = bytes(b for b in row["input_ids"].tolist() if b < 256).decode()
        assert text.count("?") >= int(starts.sum()) > 0
    assert scored == 8


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3", "qa5"])
def test_rows_of_facts_alone_are_full_of_answers(byte, task):
    rows = Mixture("babilong", byte, 1500, 0, tasks=task, facts_only=1.0)
    for index in range(6):
        row = rows[index]
        end = int((row["labels"] != -100).nonzero()[-1])
        assert 1200 < end < 1500
        text = byte.decode(row["input_ids"][1 : end + 1])
        told: list[str] = []
        asked = 0
        for sentence in re.findall(r"[A-Z][^.?]*[.?](?: \w+<eos>)?", text):
            if sentence.endswith("<eos>"):
                question, answer = sentence.removesuffix("<eos>").split("? ")
                assert answers(f"{question}?", told) == [answer]
                asked += 1
            else:
                told.append(sentence)
        assert len(told) > 10
        assert asked > len(told) // 8
    again = Mixture("babilong", byte, 1500, 0, tasks=task, facts_only=1.0)[5]
    assert all(again[name].equal(row[name]) for name in row)


@pytest.fixture(scope="module")
def words():
    """A byte-level BPE tokenizer for which every word of the stories is one token."""
    from tokenizers import ByteLevelBPETokenizer

    rng = random.Random(0)
    told = [" ".join((*one.facts, one.question)) for task in STORY_FACTS for one in story(task, 60, rng)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(told, vocab_size=500, show_progress=False)
    return tokenizer


@pytest.mark.parametrize("asked", [0.0, 1.0])
def test_hints_stand_at_their_words(words, tmp_path, books, asked):
    (tmp_path / "books.txt").write_text("\n\n".join(books), encoding="utf-8")
    options = dict(tasks=["qa2", "qa3", "qa4"], whole_stories=asked, background=str(tmp_path / "books.txt"))
    rows, plain = (Mixture("babilong", words, 400, 0, hints=hints, **options) for hints in (True, False))
    kinds = {"person": 0, "question": 0, "thing": 0, "place": 0, "before": 0, "toucher": 0, "sign": 0, "side": 0}
    for index in range(12):
        row = rows[index]
        assert row["block_targets"].shape == (400, 3)
        assert "block_targets" not in plain[index]
        text = [words.decode([i]) for i in row["input_ids"].tolist()]
        labels = row["block_targets"]
        for at, block in (labels != -100).nonzero().tolist():
            says = words.decode([int(labels[at, block])]).strip()
            said = text[at].strip()
            if block == 0 and len(says) == 1:
                assert said in (*OPPOSITE, ".", "?")
                assert says in SIDES.values()
                kinds["side"] += 1
            elif block == 0 and said != "?":
                assert said in PEOPLE
                assert says in PLACES
                kinds["person"] += 1
            elif block == 0:
                assert says in PEOPLE
                kinds["toucher"] += 1
            elif len(says) == 1:
                assert block == 1
                assert said in (*PLACES, "?")
                assert says in SIGNS.values()
                kinds["sign"] += 1
            elif block == 2 and said != "?":
                assert said in PLACES
                assert says in PLACES
                kinds["place"] += 1
            elif block == 2:
                assert re.search(r"Where was the \w+ before the \w+\?$", "".join(text[: at + 1]))
                assert says == text[at + 1].strip() or not asked  # the answer
                assert says in PLACES
                kinds["before"] += 1
            elif said == "?":
                assert says in PLACES + PEOPLE
                kinds["question"] += 1
            else:
                assert said == "."
                assert says in PLACES
                assert re.search(f"({LEFT.pattern}|{MOVED.pattern})$", "".join(text[: at + 1]))
                kinds["thing"] += 1
    assert min(kinds.values()) > 0


def test_hints_in_packed_rows_move_with_their_sample(words):
    options = dict(tasks="qa2", whole_stories=1.0, facts_only=1.0, hints=True)
    row = Mixture("babilong", words, 600, 0, min_length=100, pack=True, **options)[0]
    at = (row["block_targets"][:, 0] != -100).nonzero().flatten()
    assert {words.decode([i]).strip() for i in row["input_ids"][at].tolist()} <= {*PEOPLE, "?"}
    assert row["document_ids"][at].unique().numel() > 1


def test_hints_need_stories_of_our_own_and_words(byte, babi):
    with pytest.raises(ValueError, match=r"hints is true; it must be false with bAbI's files"):
        Mixture("babilong", byte, 3000, 0, facts=str(babi), hints=True)
    with pytest.raises(ValueError, match=r"hints is true; it needs a tokenizer whose first token tells A, .* apart"):
        Mixture("babilong", byte, 3000, 0, tasks="qa2", hints=True)


def test_step_questions_need_stories_of_our_own(byte, babi):
    with pytest.raises(ValueError, match=r"step_questions is 0\.5; bAbI's files \(facts\) ask none"):
        Mixture("babilong", byte, 3000, 0, facts=str(babi), step_questions=0.5)
    with pytest.raises(ValueError, match="a row without whole_stories or facts_only asks the last question alone"):
        Mixture("babilong", byte, 3000, 0, tasks="qa2", step_questions=0.5)
    rows = Mixture("babilong", byte, 3000, 0, tasks="qa2", whole_stories=1.0, step_questions=1.0, steps=["holder"])
    text = "".join(bytes(b for b in rows[i]["input_ids"].tolist() if b < 256).decode() for i in range(8))
    assert text.count("Who has the") > text.count("Where is the") > 0


def test_rows_of_facts_alone_need_stories_of_our_own(byte, babi):
    with pytest.raises(ValueError, match="facts_only is 2; it must be 0 to 1"):
        Mixture("babilong", byte, 600, 0, facts_only=2)
    with pytest.raises(ValueError, match="0 with bAbI's files"):
        Mixture("babilong", byte, 600, 0, facts_only=0.5, facts=str(babi))
    with pytest.raises(ValueError, match="does not fit 10 tokens; raise min_length"):
        _ = Mixture("babilong", byte, 10, 0, facts_only=1.0)[0]
