"""Generated stories of bAbI's qa1 to qa5, from a world of people who walk and who carry, drop and give things.

The published training files hold 2,000 stories per task; a small model needs more to learn two steps of reasoning.
Sentences, questions and answers follow the published files. Source: Weston et al., 2015 (bAbI).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from titanslab.tasks.babilong.babi import BabiQuestion, Hint

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
_MOVE = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
_TAKE = ("picked up", "got", "grabbed", "took")
_DROP = ("dropped", "left", "discarded", "put down")
_GIVE = ("gave", "passed", "handed")
# Words and phrases of the facts; a book may contain each of them.
MENTIONS = tuple(
    sorted({*PLACES, *THINGS, *PEOPLE, *GIVERS, *_MOVE, *_TAKE, *_DROP, *_GIVE, *(f"{way} of" for way in _OPPOSITE)})
)
# Facts of the longest story of each task in the published files.
STORY_FACTS = {"qa1": 10, "qa2": 68, "qa3": 224, "qa4": 2, "qa5": 126}

# Steps of a task's answer for which a story can have questions; the published files have none.
STEPS = {"qa2": ("holder", "person"), "qa3": ("holder", "person", "thing", "before"), "qa5": ("holder",)}

HINTED_BLOCKS = 3  # blocks whose outputs have hints
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWX"
# Targets of hints for a person at a place: a letter for each pair, so that the key is neither of the two words.
SIGNS = dict(zip(((person, place) for person in PEOPLE for place in PLACES), _LETTERS, strict=True))
# Targets of hints for a side of a place, in qa4.
SIDES = dict(zip(((side, place) for side in sorted(_OPPOSITE) for place in PLACES), _LETTERS, strict=True))

Answer = tuple[str, str, tuple[int, ...], tuple[Hint, ...]]  # question, answer, supporting facts, hints


@dataclass(frozen=True)
class Asked:
    """The questions of a generated story before its last one. OURS: bAbI has no such choice; lessons need it.

    Args:
        often: share of facts after which there is a question, 0 to 1; about 0.25 in the published stories.
        step_questions: share of the earlier questions that ask for one step of the task's answer, such as "Who has
            the milk?" in qa2, 0 to 1. A model that has learned the steps learns the task.
        steps: the steps to ask for, among those that the task has (`STEPS`); empty = all. `before` asks where a
            person was before a place, `holder` who has a thing, `person` and `thing` where a person or a thing is.
        contested: share of contested questions among those of qa3 and of `before`, 0 to 1, the last question
            included. Such a question is about a place to which another person came later from elsewhere, so a model
            that stores only the last visitor of a place answers it wrongly. Stories without such a place have none.
    """

    often: float = 0.5
    step_questions: float = 0.0
    steps: tuple[str, ...] = ()
    contested: float = 0.0

    def __post_init__(self) -> None:
        for name in ("often", "step_questions", "contested"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be 0 to 1")
        for step in self.steps:
            if step not in _ASK:
                raise ValueError(f"steps holds {step!r}; it may hold {', '.join(sorted(_ASK))}")
        if self.steps and not self.step_questions:
            raise ValueError(f"steps is {', '.join(self.steps)} and step_questions is 0; raise it, or leave steps out")


NO_LESSON = Asked()


class World:
    """State of a story of `task`: its facts, and the places and holders that follow from them."""

    def __init__(self, rng: random.Random, task: str, contested: float):
        people = GIVERS if task == "qa5" else PEOPLE
        self.rng, self.task, self.people, self.contested = rng, task, people, contested
        self.facts: list[str] = []
        self.hints: list[tuple[Hint, ...]] = []  # of each fact
        self.place = {p: rng.choice(PLACES) for p in people}
        self.stated: dict[str, int] = {}  # person -> index of the fact that states their place
        self.lies = {t: rng.choice(PLACES) for t in THINGS}
        self.holder: dict[str, str] = {}
        self.toucher: dict[str, str] = {}  # thing -> the person who took, dropped or received it last
        # (person, place) -> the place where the person was before, and the facts that state both
        self.came: dict[tuple[str, str], tuple[str, tuple[int, int]]] = {}
        self.latest: dict[str, str] = {}  # place -> the place where its last visitor was before
        # thing -> its places in order, each with the facts that state it
        self.path: dict[str, list[tuple[str, tuple[int, ...]]]] = {t: [] for t in THINGS}
        self.gifts: list[tuple[str, str, str, int]] = []  # giver, thing, receiver, fact

    def add(self, person: str, rest: str, *hints: Hint) -> int:
        """Add a fact and return its index; the hint at its first word is the place of the person."""
        known = (Hint(1, self.place[person], 0),) if person in self.stated else ()
        self.facts.append(f"{person} {rest}")
        self.hints.append((*known, *hints))
        return len(self.facts) - 1

    def move(self, person: str) -> None:
        """The person walks to another place."""
        before = self.place[person]
        place = self.rng.choice([p for p in PLACES if p != before])
        hints = [Hint(2, before)] if person in self.stated else []
        way = self.rng.choice(_MOVE)
        at = 2 + len(way.split())
        if (person, place) in SIGNS:
            hints.append(Hint(2, SIGNS[person, place], at))
        if (person, place) in self.came:
            hints.append(Hint(3, self.came[person, place][0], at))
        fact = self.add(person, f"{way} the {place}.", *hints)
        if person in self.stated:
            self.came[person, place] = before, (self.stated[person], fact)
            self.latest[place] = before
        self.place[person], self.stated[person] = place, fact
        for thing, holder in self.holder.items():
            if holder == person:
                self._record(thing, place, (fact,))

    def take(self, person: str, thing: str) -> None:
        """The person takes a thing; in a fifth of the sentences of qa3, and in all of the other tasks, "there"."""
        verb, there = self.rng.choice(_TAKE), self.rng.random() < (0.2 if self.task == "qa3" else 1.0)
        fact = self.add(person, f"{verb} the {thing}{' there' * there}.")
        self.holder[thing] = self.toucher[thing] = person
        if person in self.stated:
            self._record(thing, self.place[person], (fact, self.stated[person]))

    def drop(self, person: str, thing: str) -> None:
        """The person drops a thing."""
        here = (Hint(2, self.place[person]),) if person in self.stated else ()
        verb, there = self.rng.choice(_DROP), self.rng.random() < 0.2
        self.add(person, f"{verb} the {thing}{' there' * there}.", *here)
        self.toucher[thing] = person
        del self.holder[thing]
        self.lies[thing] = self.place[person]

    def give(self, person: str, thing: str, other: str) -> None:
        """The person gives a thing to another."""
        fact = self.add(person, f"{self.rng.choice(_GIVE)} the {thing} to {other}.")
        self.holder[thing] = self.toucher[thing] = other
        self.gifts.append((person, thing, other, fact))

    def is_contested(self, person: str, place: str) -> bool:
        """Whether the last visitor of the place came from another place than this person did."""
        return (person, place) in self.came and self.came[person, place][0] != self.latest[place]

    def act(self) -> None:
        """Add one fact: in qa1 people walk, in other tasks they take and drop things too, in qa5 they give them too."""
        rng, person = self.rng, self.rng.choice(self.people)
        if self.task != "qa1" and rng.random() < 0.8:
            here = [t for t in THINGS if t not in self.holder and self.lies[t] == self.place[person]]
            held = [t for t, holder in self.holder.items() if holder == person]
            near = [p for p in self.people if p != person and self.place[p] == self.place[person]]
            if self.task == "qa5" and held and near and rng.random() < 0.9:
                return self.give(person, rng.choice(held), rng.choice(near))
            if here and (not held or rng.random() < 0.6):
                return self.take(person, rng.choice(here))
            if held and rng.random() < 0.6:
                return self.drop(person, rng.choice(held))
        return self.move(person)

    def _record(self, thing: str, place: str, why: tuple[int, ...]) -> None:
        """Append a place to the path of a thing, with the facts that state it."""
        if not self.path[thing] or self.path[thing][-1][0] != place:
            self.path[thing].append((place, why))


def story(task: str, facts: int, rng: random.Random, asked: Asked = NO_LESSON) -> list[BabiQuestion]:
    """Generate a story and return its questions in order; the last one comes after all facts.

    Args:
        task: `qa1` to `qa5`.
        facts: least number of statements; there are more where no question is possible yet. A published story of qa4
            has two, with four questions on them; more give one map after another, with one question each.
        rng: source of randomness.
        asked: the questions before the last one; without effect in qa4.
    """
    if task not in STORY_FACTS:
        raise ValueError(f"task is {task!r}; stories are made for {', '.join(STORY_FACTS)}; others need bAbI's files")
    if facts < 1:
        raise ValueError(f"facts is {facts}; it must be at least 1")
    if task == "qa4":
        return _directions(rng, facts)
    world = World(rng, task, asked.contested)
    own = {"qa1": _ask_person, "qa2": _ask_thing, "qa3": _ask_before, "qa5": _ask_gift}[task]
    lessons = [_ASK[step] for step in STEPS.get(task, ()) if not asked.steps or step in asked.steps]
    questions: list[BabiQuestion] = []
    while True:
        world.act()
        last = len(world.facts) >= facts
        if last or rng.random() < asked.often:
            lesson = bool(asked.step_questions and lessons and not last) and rng.random() < asked.step_questions
            answer = (rng.choice(lessons) if lesson else own)(world)
            if answer is not None:
                questions.append(BabiQuestion(tuple(world.facts), *answer, tuple(questions), tuple(world.hints)))
                if last:
                    return questions


def _ask_person(world: World) -> Answer | None:
    if not world.stated:
        return None
    person = world.rng.choice(sorted(world.stated))
    return f"Where is {person}?", world.place[person], (world.stated[person],), ()


def _ask_thing(world: World) -> Answer | None:
    known = [t for t in THINGS if world.path[t]]
    if not known:
        return None
    thing = world.rng.choice(known)
    place, why = world.path[thing][-1]
    hints = (Hint(1, world.toucher[thing]), Hint(2, world.holder.get(thing, place)))
    return f"Where is the {thing}?", place, why, hints


def _ask_holder(world: World) -> Answer | None:
    if not world.holder:
        return None
    thing = world.rng.choice(sorted(world.holder))
    fact = max(i for i, text in enumerate(world.facts) if f" the {thing}" in text)
    holder = world.holder[thing]
    return f"Who has the {thing}?", holder, (fact,), (Hint(1, holder), Hint(2, holder))


def _ask_person_before(world: World) -> Answer | None:
    if not world.came:
        return None
    visits = sorted(world.came)
    if world.contested and world.rng.random() < world.contested:
        visits = [visit for visit in visits if world.is_contested(*visit)] or visits
    person, place = world.rng.choice(visits)
    answer, why = world.came[person, place]
    return f"Where was {person} before the {place}?", answer, why, (Hint(2, SIGNS[person, place]), Hint(3, answer))


def _ask_before(world: World) -> Answer | None:
    # thing -> place -> index of its last occurrence in the thing's path; the first entry of a path is left out
    visited = {t: {place: i for i, (place, _) in enumerate(world.path[t]) if i} for t in THINGS}
    known = [thing for thing in THINGS if visited[thing]]
    if not known:
        return None
    visits = [(t, place) for t in known for place in visited[t] if world.is_contested(world.toucher[t], place)]
    if visits and world.contested and world.rng.random() < world.contested:
        thing, place = world.rng.choice(visits)
    else:
        thing = world.rng.choice(known)
        newest = world.path[thing][-1][0]
        place = newest if world.rng.random() < 0.75 else world.rng.choice(sorted(visited[thing]))
    last, toucher = visited[thing][place], world.toucher[thing]
    (answer, before), (_, why) = world.path[thing][last - 1 : last + 1]
    hints = (Hint(1, toucher), Hint(2, SIGNS[toucher, place]), Hint(3, answer))
    return f"Where was the {thing} before the {place}?", answer, (*why, *before), hints


_ASK: dict[str, Callable[[World], Answer | None]] = {
    "before": _ask_person_before,
    "holder": _ask_holder,
    "person": _ask_person,
    "thing": _ask_thing,
}


def _ask_gift(world: World) -> Answer | None:
    if not world.gifts:
        return None
    giver, thing, other, fact = world.gifts[-1]
    if world.rng.random() < 0.5:  # an earlier gift, if no later one answers the same question
        giver, thing, other, fact = world.rng.choice(world.gifts)
    forms = [
        (f"What did {giver} give to {other}?", thing, (giver, None, other)),
        (f"Who gave the {thing}?", giver, (None, thing, None)),
        (f"Who gave the {thing} to {other}?", giver, (None, thing, other)),
        (f"Who received the {thing}?", other, (None, thing, None)),
        (f"Who did {giver} give the {thing} to?", other, (giver, thing, None)),
    ]
    question, answer, like = world.rng.choices(forms, weights=(2, 1, 1, 1, 1))[0]
    later = [g for g in world.gifts if g[3] > fact and all(k is None or k == g[i] for i, k in enumerate(like))]
    return None if later else (question, answer, (fact,), ())


def _directions(rng: random.Random, facts: int) -> list[BabiQuestion]:
    """qa4: two facts place three places in a line; the questions ask for each neighbour in both directions.

    More than two facts describe one line after another, and the last one holds. Each line then has one question,
    because the answer to one question rules out answers to others.
    """
    questions: list[BabiQuestion] = []
    stated: tuple[str, ...] = ()
    hints: tuple[tuple[Hint, ...], ...] = ()
    while len(stated) < facts:
        one, middle, other = rng.sample(PLACES, 3)
        way = rng.choice(sorted(_OPPOSITE))
        line: list[tuple[str, str, str]] = []
        for end, side in ((one, way), (other, _OPPOSITE[way])):
            line.append((end, side, middle) if rng.random() < 2 / 3 else (middle, _OPPOSITE[side], end))
        stated += tuple(f"The {a} is {d} of the {b}." for a, d, b in line)
        hints += tuple((Hint(1, SIDES[_OPPOSITE[d], a], 3), Hint(1, SIDES[d, b])) for a, d, b in line)
        asked = rng.sample([(0, False), (0, True), (1, False), (1, True)], 4)
        for fact, turned in asked[: 4 if facts <= 2 else 1]:
            answer, side, known = line[fact]
            question = f"What is the {known} {_OPPOSITE[side]} of?" if turned else f"What is {side} of the {known}?"
            why = (len(stated) - 2 + fact,)
            sign = (Hint(1, SIDES[side, known]),)
            questions.append(BabiQuestion(stated, question, answer, why, sign, tuple(questions), hints))
    return questions
