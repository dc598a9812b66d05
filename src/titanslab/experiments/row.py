"""One model of the long-context table, trained and evaluated; started by `titanslab.experiments.long_context`.

    python -m titanslab.experiments.row JOB

JOB is the JSON of a `Job`. What is done is not done again, an interrupted run or evaluation goes on.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN, EVALUATION, OFF = "run", "evaluation", "evaluation-off"
LATE = "-late"  # ends the names of the second stage's folders
LESSON = "lesson-"  # begins those of the runs before the one that is tested
KILO = {"niah": 1024, "babilong": 1000}


@dataclass(frozen=True)
class Job:
    """A model to train and what to ask it.

    Args:
        task: `niah` or `babilong`.
        recipe: path of the recipe.
        assignments: `section.key=value` changes to it.
        lessons: recipes that come before it, each from the model of the one before, with their changes.
        late_recipe: path of the second stage's recipe, empty = none; with one, what that stage gives is tested.
        late_assignments: changes to it.
        folder: of this row and seed; it will hold `run`, `evaluation` and `evaluation-off`, with lessons before that
            `lesson-1` and on, and with a second stage `run-late`, `evaluation-late` and `evaluation-off-late`.
        samples_folder: test samples shared by all rows.
        names: variants or tasks, with commas.
        near, far, off: lengths such as `2k,4k`, empty = none; `off` is asked with frozen memories too.
        samples, far_samples, off_samples: per task and length.
        text: haystack or background of the test.
        facts: bAbI's folder.
        nouns, adjectives: word lists of S-NIAH's keys.
        max_new_tokens, batch_size, batch_tokens, piece: of the evaluation.
        seed: of the test samples.
        tokenizer_for_length: what counts lengths; None = the model's own.
    """

    task: str
    recipe: str
    assignments: tuple[str, ...]
    lessons: tuple[tuple[str, tuple[str, ...]], ...]
    late_recipe: str
    late_assignments: tuple[str, ...]
    folder: str
    samples_folder: str
    names: str
    near: str
    far: str
    off: str
    samples: int
    far_samples: int
    off_samples: int
    text: str
    facts: str | None
    nouns: str | None
    adjectives: str | None
    max_new_tokens: int
    batch_size: int
    batch_tokens: int
    piece: int
    seed: int
    device: str
    tokenizer_for_length: str | None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def work(job: Job) -> None:
    """Train where no finished run is there, then answer what is not answered yet."""
    from titanslab.runs.quiet import quiet_libraries

    quiet_libraries()
    from titanslab.training.recipe import load_recipe
    from titanslab.training.run import RECIPE, train

    folder, stage, before = Path(job.folder), "", None
    stages = [(f"{LESSON}{n}", *lesson) for n, lesson in enumerate(job.lessons, 1)]
    stages.append((RUN, job.recipe, job.assignments))
    if job.late_recipe:
        stage = LATE
        stages.append((RUN + LATE, job.late_recipe, job.late_assignments))
    first = load_recipe(*stages[0][1:])
    for name, path, assignments in stages:
        run = folder / name
        recipe = load_recipe(path, (*assignments, f"model.pretrained={before}") if before else assignments)
        say({RUN: "training", RUN + LATE: "training, second stage"}.get(name, f"training, {name}"))
        train(recipe, run, resume=(run / RECIPE).exists())
        before = run
    variant = first.model.variant or "attention"
    rounds = [(EVALUATION, job.near, job.samples, True), (EVALUATION, job.far, job.far_samples, True)]
    if variant != "attention":
        rounds.append((OFF, job.off, job.off_samples, False))
    for name, lengths, samples, learn in rounds:
        if lengths:
            say(f"{name} at {lengths}")
            evaluate(job, run, folder / (name + stage), lengths, samples, learn)


def evaluate(job: Job, run: Path, output: Path, lengths: str, samples: int, learn: bool) -> None:
    """Answer samples of every task and length with the model of `run`, as `titans evaluate` does."""
    from titanslab.evaluation.run_task import Questions, TaskRun, run_task
    from titanslab.runs.devices import pick_device
    from titanslab.tasks.table import TASKS

    task = TASKS[job.task]
    own = {"haystack": None if job.names == "single_1" else job.text, "background": job.text, "facts": job.facts}
    own |= {"adjectives": job.adjectives, "nouns": job.nouns, task.parts_option: job.names}
    options = {option.name: own[option.name] for option in task.options if option.name in own}
    run_task(
        TaskRun(
            questions=Questions(
                task=task,
                lengths=lengths,
                samples=samples,
                seed=job.seed,
                options=options,
                tokenizer_for_length=job.tokenizer_for_length,
                folder=Path(job.samples_folder),
            ),
            model=str(run),
            output=output,
            device=pick_device(job.device),
            max_new_tokens=job.max_new_tokens,
            batch_size=job.batch_size,
            batch_tokens=job.batch_tokens,
            piece=job.piece,
            learn=learn,
        )
    )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system drops when this process dies; else exit with a word."""
    from titanslab.evaluation.results import hold

    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with lock:
        yield


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    content = json.loads(sys.argv[1])
    with alone(Path(content["folder"])):
        lists = {name: tuple(content[name]) for name in ("assignments", "late_assignments")}
        lists["lessons"] = tuple((path, tuple(changes)) for path, changes in content["lessons"])
        work(Job(**{**content, **lists}))
