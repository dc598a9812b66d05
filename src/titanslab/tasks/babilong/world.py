"""Stories of bAbI's qa1 to qa5 without end, from a world of our own: people who walk, carry, drop and give.

The published training files end after 2,000 stories a task; a small model needs more to learn two steps of reasoning.
Sentences, what is asked and what counts as the answer follow the published files. Source: Weston et al., 2015 (bAbI).
"""

import random
from collections.abc import Callable, Sequence
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
# what the facts are made of, each of which a book may hold too
MENTIONS = tuple(
    sorted({*PLACES, *THINGS, *PEOPLE, *GIVERS, *_MOVE, *_TAKE, *_DROP, *_GIVE, *(f"{way} of" for way in _OPPOSITE)})
)
# the longest stories of the published files, in facts
STORY_FACTS = {"qa1": 10, "qa2": 68, "qa3": 224, "qa4": 2, "qa5": 126}

# questions on one step of a task's answer, which the published files do not ask in its stories
STEPS = {"qa2": ("holder", "person"), "qa3": ("holder", "person", "thing", "before"), "qa5": ("holder",)}

HINTED_BLOCKS = 3  # blocks whose outputs the hints speak of
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWX"
# what hints call a person at a place: a letter each, for a key that is neither the person's nor the place's
SIGNS = dict(zip(((person, place) for person in PEOPLE for place in PLACES), _LETTERS, strict=True))
# and a side of a place, in qa4
SIDES = dict(zip(((side, place) for side in sorted(_OPPOSITE) for place in PLACES), _LETTERS, strict=True))

Answer = tuple[str, str, tuple[int, ...], tuple[Hint, ...]]  # question, answer, supporting facts, hints


@dataclass(frozen=True)
class Asked:
    """What is asked in a story of our own before its last question; OURS, for lessons.

    Args:
        often: share of facts after which there is a question, 0 to 1; published stories have about one in four.
        step_questions: share of the earlier questions that ask for a step of the task's answer ("Who has the milk?"
            in qa2), 0 to 1: a model that knows the steps learns the task.
        steps: which of `before`, `holder`, `person`, `thing` these ask for, as far as the task has them (`STEPS`):
            where a person was before a place, who has a thing, where a person or a thing is; empty = all.
        contested: share of the questions about where somebody or a thing was before (qa3's, and `before`'s) that are
            about a place to which somebody else came later from elsewhere, where the story has one, 0 to 1: a reader
            that keeps but the last one who came to a place is wrong there. It holds for the last question too.
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
    """Who is where with what, as a reader of the facts so far can know it."""

    def __init__(self, rng: random.Random, people: tuple[str, ...], contested: float = 0.0):
        self.rng, self.people, self.contested = rng, people, contested
        self.facts: list[str] = []
        self.hints: list[tuple[Hint, ...]] = []  # for each fact
        self.place = {p: rng.choice(PLACES) for p in people}
        self.told: dict[str, int] = {}  # person -> the fact that says where they are
        self.lies = {t: rng.choice(PLACES) for t in THINGS}
        self.holder: dict[str, str] = {}
        self.toucher: dict[str, str] = {}  # thing -> who took, dropped or was given it last
        self.came: dict[tuple[str, str], tuple[str, tuple[int, int]]] = {}  # person, place -> from where, and the facts
        self.latest: dict[str, str] = {}  # place -> from where the last one came there
        self.path: dict[str, list[tuple[str, tuple[int, ...]]]] = {t: [] for t in THINGS}
        self.gifts: list[tuple[str, str, str, int]] = []  # giver, thing, receiver, fact

    def say(self, person: str, rest: str, *hints: Hint) -> int:
        """Tell a fact; at its first word the first block should know where the person is."""
        known = (Hint(1, self.place[person], 0),) if person in self.told else ()
        self.facts.append(f"{person} {rest}")
        self.hints.append((*known, *hints))
        return len(self.facts) - 1

    def there(self, share: float) -> str:
        return " there." if self.rng.random() < share else "."

    def move(self, person: str) -> None:
        before = self.place[person]
        place = self.rng.choice([p for p in PLACES if p != before])
        hints = [Hint(2, before)] if person in self.told else []
        way = self.rng.choice(_MOVE)
        at = 2 + len(way.split())
        if (person, place) in SIGNS:
            hints.append(Hint(2, SIGNS[person, place], at))
        if (person, place) in self.came:
            hints.append(Hint(3, self.came[person, place][0], at))
        fact = self.say(person, f"{way} the {place}.", *hints)
        if person in self.told:
            self.came[person, place] = before, (self.told[person], fact)
            self.latest[place] = before
        self.place[person], self.told[person] = place, fact
        for thing, holder in self.holder.items():
            if holder == person:
                self._now(thing, place, (fact,))

    def take(self, person: str, thing: str, there: float) -> None:
        fact = self.say(person, f"{self.rng.choice(_TAKE)} the {thing}{self.there(there)}")
        self.holder[thing] = self.toucher[thing] = person
        if person in self.told:
            self._now(thing, self.place[person], (fact, self.told[person]))

    def drop(self, person: str, thing: str) -> None:
        here = (Hint(2, self.place[person]),) if person in self.told else ()
        self.say(person, f"{self.rng.choice(_DROP)} the {thing}{self.there(0.2)}", *here)
        self.toucher[thing] = person
        del self.holder[thing]
        self.lies[thing] = self.place[person]

    def give(self, person: str, thing: str, other: str) -> None:
        fact = self.say(person, f"{self.rng.choice(_GIVE)} the {thing} to {other}.")
        self.holder[thing] = self.toucher[thing] = other
        self.gifts.append((person, thing, other, fact))

    def is_contested(self, person: str, place: str) -> bool:
        """Whether somebody came to the place after the person did, from elsewhere."""
        return (person, place) in self.came and self.came[person, place][0] != self.latest[place]

    def act(self, carry: bool, give: bool, there: float) -> None:
        """One more fact."""
        rng, person = self.rng, self.rng.choice(self.people)
        if carry and rng.random() < 0.8:
            here = [t for t in THINGS if t not in self.holder and self.lies[t] == self.place[person]]
            held = [t for t, holder in self.holder.items() if holder == person]
            near = [p for p in self.people if p != person and self.place[p] == self.place[person]]
            if give and held and near and rng.random() < 0.9:
                return self.give(person, rng.choice(held), rng.choice(near))
            if here and (not held or rng.random() < 0.6):
                return self.take(person, rng.choice(here), there)
            if held and rng.random() < 0.6:
                return self.drop(person, rng.choice(held))
        return self.move(person)

    def _now(self, thing: str, place: str, why: tuple[int, ...]) -> None:
        if not self.path[thing] or self.path[thing][-1][0] != place:
            self.path[thing].append((place, why))


def story(task: str, facts: int, rng: random.Random, asked: Asked = NO_LESSON) -> list[BabiQuestion]:
    """The questions of a new story, in its order; the last is asked after all facts.

    Args:
        task: `qa1` to `qa5`.
        facts: statements of the story at least, more where nothing can be asked before; qa4 has two, in published
            stories always, and all four questions on them; more tell one map after another, with a question each.
        rng: what draws it.
        asked: what is asked on the way; qa4 takes no notice of it.
    """
    if task not in STORY_FACTS:
        raise ValueError(f"task is {task!r}; stories are made for {', '.join(STORY_FACTS)}; others need bAbI's files")
    if facts < 1:
        raise ValueError(f"facts is {facts}; it must be at least 1")
    if task == "qa4":
        return _directions(rng, facts)
    world = World(rng, GIVERS if task == "qa5" else PEOPLE, asked.contested)
    own = {"qa1": _ask_person, "qa2": _ask_thing, "qa3": _ask_before, "qa5": _ask_gift}[task]
    lessons = [_ASK[step] for step in STEPS.get(task, ()) if not asked.steps or step in asked.steps]
    questions: list[BabiQuestion] = []
    while True:
        world.act(task != "qa1", task == "qa5", 0.2 if task == "qa3" else 1.0)
        last = len(world.facts) >= facts
        if last or rng.random() < asked.often:
            lesson = bool(asked.step_questions and lessons and not last) and rng.random() < asked.step_questions
            answer = (rng.choice(lessons) if lesson else own)(world)
            if answer is not None:
                text, reply, why, hints = answer
                told, earlier = tuple(world.facts), tuple(questions)
                questions.append(BabiQuestion(told, text, reply, why, earlier, hints, tuple(world.hints)))
                if last:
                    return questions


def _ask_person(world: World) -> Answer | None:
    if not world.told:
        return None
    person = world.rng.choice(sorted(world.told))
    return f"Where is {person}?", world.place[person], (world.told[person],), ()


def _ask_thing(world: World) -> Answer | None:
    known = [t for t in THINGS if world.path[t]]
    if not known:
        return None
    thing = world.rng.choice(known)
    place, why = world.path[thing][-1]
    return (
        f"Where is the {thing}?",
        place,
        why,
        (Hint(1, world.toucher[thing]), Hint(2, world.holder.get(thing, place))),
    )


def _ask_holder(world: World) -> Answer | None:
    if not world.holder:
        return None
    thing = world.rng.choice(sorted(world.holder))
    fact = max(i for i, told in enumerate(world.facts) if f" the {thing}" in told)
    return (
        f"Who has the {thing}?",
        world.holder[thing],
        (fact,),
        (Hint(1, world.holder[thing]), Hint(2, world.holder[thing])),
    )


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
    known = [t for t in THINGS if len(world.path[t]) > 1]
    if not known:
        return None
    visits = [(thing, place) for thing in known for place in _visited(world.path[thing])]
    visits = [(thing, place) for thing, place in visits if world.is_contested(world.toucher[thing], place)]
    if visits and world.contested and world.rng.random() < world.contested:
        thing, place = world.rng.choice(visits)
    else:
        thing = world.rng.choice(known)
        path = world.path[thing]
        place = path[-1][0] if world.rng.random() < 0.75 else world.rng.choice(sorted(_visited(path)))
    path = world.path[thing]
    last = _visited(path)[place]
    (answer, before), (_, why) = path[last - 1], path[last]
    asked = f"Where was the {thing} before the {place}?"
    toucher = world.toucher[thing]
    hints = (Hint(1, toucher), Hint(2, SIGNS[toucher, place]), Hint(3, answer))
    return asked, answer, (*why, *before), hints


def _visited(path: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Place -> its index in a thing's path, but for the first; of a place where it was twice, the last counts."""
    return {place: i for i, (place, _) in enumerate(path) if i}


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
    if world.rng.random() < 0.5:  # an earlier one, where it is the last of its kind
        giver, thing, other, fact = world.rng.choice(world.gifts)
    forms = [
        (f"What did {giver} give to {other}?", thing, (giver, None, other)),
        (f"Who gave the {thing}?", giver, (None, thing, None)),
        (f"Who gave the {thing} to {other}?", giver, (None, thing, other)),
        (f"Who received the {thing}?", other, (None, thing, None)),
        (f"Who did {giver} give the {thing} to?", other, (giver, thing, None)),
    ]
    weights = (2, 1, 1, 1, 1)
    question, answer, like = world.rng.choices(forms, weights)[0]
    later = [g for g in world.gifts if g[3] > fact and all(k is None or k == g[i] for i, k in enumerate(like))]
    return None if later else (question, answer, (fact,), ())


def _directions(rng: random.Random, facts: int) -> list[BabiQuestion]:
    """qa4: three places in a line, told by their neighbours; every neighbour is asked for, either way round.

    More than two facts tell one line after another, of which the last one told holds, each with one question: of
    several, an answer that was given rules out others.
    """
    questions: list[BabiQuestion] = []
    told: tuple[str, ...] = ()
    hints: tuple[tuple[Hint, ...], ...] = ()
    while len(told) < facts:
        one, middle, other = rng.sample(PLACES, 3)
        way = rng.choice(sorted(_OPPOSITE))
        line: list[tuple[str, str, str]] = []
        for end, side in ((one, way), (other, _OPPOSITE[way])):
            line.append((end, side, middle) if rng.random() < 2 / 3 else (middle, _OPPOSITE[side], end))
        told += tuple(f"The {a} is {d} of the {b}." for a, d, b in line)
        hints += tuple((Hint(1, SIDES[_OPPOSITE[d], a], 3), Hint(1, SIDES[d, b])) for a, d, b in line)
        asked = rng.sample([(0, False), (0, True), (1, False), (1, True)], 4)
        for fact, turned in asked[: 4 if facts <= 2 else 1]:
            answer, side, known = line[fact]
            question = f"What is the {known} {_OPPOSITE[side]} of?" if turned else f"What is {side} of the {known}?"
            why = (len(told) - 2 + fact,)
            sign = (Hint(1, SIDES[side, known]),)
            questions.append(BabiQuestion(told, question, answer, why, tuple(questions), sign, hints))
    return questions
