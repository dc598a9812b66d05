"""What `titanslab.experiments.long_context` trains and asks: a job for each row and seed."""

import argparse
from pathlib import Path

from titanslab.experiments.arguments import EXACT_ROWS, LESSON_ROWS, RECIPES
from titanslab.experiments.row import LESSON, Job

LATE_ROW, SECOND_SEED = "late", 1000  # the second stage has its own samples: its seed is the row's and so much more


def changes(options: argparse.Namespace, row: str, seed: int, tokenizer: Path, lesson: str = "") -> list[str]:
    """What a row's recipe is changed by, as `section.key=value`; the row `late` is the second stage's recipe.

    `lesson` is the lesson whose recipe it is, such as `lesson-2`.
    """
    made = [f"data.tokenizer={tokenizer}", f"training.seed={seed}"]
    if options.task == "niah":
        made.append(f"data.task_options.haystack={options.train_text}")
        for name in ("nouns", "adjectives"):
            if getattr(options, name):
                made.append(f"data.task_options.{name}={getattr(options, name)}")
    else:
        made.append(f"data.task_options.background={options.train_text}")
        if options.train_facts:
            made.append(f"data.task_options.facts={options.train_facts}")
    if options.device == "cpu":
        made.append("training.cpu=true")
    if lesson == f"{LESSON}1":
        made += LESSON_ROWS[row]
    if options.exact:
        made += EXACT_ROWS[row]
    if row != LATE_ROW and (options.steps or options.batch):
        from titanslab.training.recipe import load_recipe

        recipe = load_recipe(first_recipe(options, row))
        before = recipe.training.steps * recipe.training.batch_size
        steps, batch = options.steps or recipe.training.steps, options.batch or recipe.training.batch_size
        curriculum = round(recipe.data.task_options.get("curriculum_rows", 0) * steps * batch / before)
        made += [f"training.steps={steps}", f"training.batch_size={batch}"]
        made += [f"data.task_options.same_length_rows={batch}", f"data.task_options.curriculum_rows={curriculum}"]
    for change in options.set:
        name, colon, rest = change.partition("=")[0].partition(":")
        if not colon and row != LATE_ROW:
            made.append(change)
        elif name in (row, lesson):
            made.append(rest + change[len(name) + 1 + len(rest) :])
    return made


def first_recipe(options: argparse.Namespace, row: str) -> Path:
    """The recipe a row begins as, without --lessons."""
    return RECIPES / "exact" / f"{options.task}.toml" if options.exact else RECIPES / options.task / f"{row}.toml"


def stages(options: argparse.Namespace, row: str, seed: int, tokenizer: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The row's recipe with its changes, or with --lessons those of every lesson, each with samples of its own."""
    if not options.lessons:
        return [(str(first_recipe(options, row)), tuple(changes(options, row, seed, tokenizer)))]
    return [
        (str(path), tuple(changes(options, row, seed + 10 * n * (n > 1), tokenizer, f"{LESSON}{n}")))
        for n, path in enumerate(sorted((RECIPES / "lessons").glob("*.toml")), 1)
    ]


def make_jobs(options: argparse.Namespace, tokenizer: Path) -> list[Job]:
    """One job a row and seed, all rows of the first seed before the second."""
    from titanslab.training.recipe import load_recipe

    jobs = []
    for seed in options.seeds:
        for row in options.rows:
            *lessons, (recipe, assignments) = stages(options, row, seed, tokenizer)
            for stage in (*lessons, (recipe, assignments)):
                loaded = load_recipe(*stage)  # a wrong --set shows before the first run
            late, late_assignments = "", tuple[str, ...]()
            if options.late and loaded.model.variant not in ("", "attention"):
                late = str(RECIPES / "late" / f"{options.task}.toml")
                late_assignments = tuple(changes(options, LATE_ROW, SECOND_SEED + seed, tokenizer))
                load_recipe(late, late_assignments)
            jobs.append(
                Job(
                    task=options.task,
                    recipe=recipe,
                    assignments=assignments,
                    lessons=tuple(lessons),
                    late_recipe=late,
                    late_assignments=late_assignments,
                    folder=str(options.work / f"{row}-seed{seed}"),
                    samples_folder=str(options.work / "samples"),
                    names=options.names,
                    near=options.lengths,
                    far=options.far if row in options.far_rows else "",
                    off=options.off,
                    samples=options.samples,
                    far_samples=options.far_samples,
                    off_samples=options.off_samples,
                    text=options.test_text,
                    facts=options.facts,
                    nouns=options.nouns,
                    adjectives=options.adjectives,
                    max_new_tokens=options.max_new_tokens,
                    batch_size=options.batch_size,
                    batch_tokens=options.batch_tokens,
                    piece=options.piece,
                    seed=options.test_seed,
                    device=options.device,
                    tokenizer_for_length=options.tokenizer_for_length,
                )
            )
    return jobs
