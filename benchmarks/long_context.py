"""S-NIAH and BABILong, trained short and tested long: every model of recipes/niah or recipes/babilong.

    python -m benchmarks.long_context niah --train-text books.txt --test-text essays.txt --work runs/niah
    python -m benchmarks.long_context niah ... --rows mac,lmm --seeds 0,1,2 --jobs 2 --far 128k,1M --far-samples 5
    python -m benchmarks.long_context babilong --facts babi/ --train-text books.txt --test-text other_books.txt \\
        --work runs/babilong

Makes a tokenizer from the training texts, trains each row with each seed (`titans train`, resumable), asks each model
at all lengths, those with a memory also with writes frozen, and writes a JSON, a markdown table and a picture of all
that lies in the work folder to benchmarks/results. Interrupted, the same command goes on. With more rows, seeds,
samples or lengths it does what is missing. `--table-only` writes the results of what is there.

With --late every row that has a memory is trained in a second stage too, recipes/late/TASK.toml, and what that gives
is tested instead; without it the first stage is. One work folder holds both.

With --lessons (babilong) every row is trained in the lessons of recipes/lessons, one after the other, with hints; rows
are then mac, lmm, mal, mag, window and attention, models of one size in the MAC's place.

With --exact (niah) every row is trained as recipes/exact says, with a memory that overwrites exactly; the rows are then
the same six.

BABILong is trained on stories of our own, or with --train-facts on bAbI's training files, and tested on those of
--facts. Rows are models of one size on the same data; what their recipes say can be changed by --set, for one row by
--set ROW:section.key=value, for the second stage by --set late:section.key=value, for a lesson by --set lesson-2:... .
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.long_context_row import KILO, LESSON, Job
from benchmarks.machine import ROOT
from benchmarks.report import Report, command, say

RECIPES = ROOT / "recipes"
LATE_ROW, SECOND_SEED = "late", 1000  # the second stage has its own samples: its seed is the row's and so much more


def in_the_macs_place(lmm: int, mal: int, mag: int, attention: int) -> dict[str, tuple[str, ...]]:
    """Rows that change a recipe's MAC to other models; the numbers are the MLP widths that make them as large."""

    def row(variant: str, width: int, *more: str) -> tuple[str, ...]:
        return (f"model.variant={variant}", f"model.intermediate_size={width}", *more)

    near = "model.window_size=64"
    return {
        "mac": (),
        "lmm": row("lmm", lmm),
        "mal": row("mal", mal, near),
        "mag": row("mag", mag, near),
        "window": row("attention", attention, near),
        "attention": row("attention", attention, "model.window_size=all"),
    }


LESSON_ROWS = in_the_macs_place(lmm=472, mal=296, mag=256, attention=544)
EXACT_ROWS = in_the_macs_place(lmm=664, mal=488, mag=448, attention=736)
# Attention over all tokens takes quadratic time: it is left out at the far lengths unless asked for.
NOT_FAR = {"attention"}
NAMES = {"niah": "single_1,single_2,single_3", "babilong": "qa1,qa2,qa3,qa4,qa5"}
LENGTHS = {"niah": "2k,4k,8k,16k", "babilong": "0k,1k,2k,4k,8k,16k"}
NEW_TOKENS = {"niah": 48, "babilong": 20}


def read_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked; relative defaults are those of the task."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_context",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", choices=sorted(NAMES))
    add("--work", type=Path, required=True, help="folder of tokenizer, runs, samples and answers; can be gone on with")
    add("--train-text", help="haystack or background to train on: a file or folder of text, json or jsonl")
    add("--test-text", help="other text, to test on")
    add("--facts", help="babilong: folder of bAbI's files, to test on")
    add("--train-facts", help="babilong: folder of bAbI's files to train on; default: stories of our own, without end")
    add("--tokenizer", help="a tokenizer to take instead of making one")
    add("--rows", help="recipes of the task, with commas; default: all")
    add("--seeds", default="0", help="with commas; default: 0")
    add("--steps", type=int, help="training steps instead of the recipe's; the curriculum keeps its share")
    add("--batch", type=int, help="rows of a batch instead of the recipe's")
    add("--late", action="store_true", help="train the second stage too, recipes/late, and test what it gives")
    add("--lessons", action="store_true", help="babilong: train in recipes/lessons, with hints")
    add("--exact", action="store_true", help="niah: train as recipes/exact says, a memory that overwrites exactly")
    add("--set", action="append", default=[], metavar="[ROW:]SECTION.KEY=VALUE", help="change recipes")
    add("--names", help="variants or tasks to test; default: all of the recipes")
    add("--lengths", help=f"default: {LENGTHS['niah']}, or {LENGTHS['babilong']}")
    add("--samples", type=int, default=100, help="per task and length; default: 100")
    add("--far", default="", help="lengths to ask at with fewer samples, such as 64k,128k,1M")
    add("--far-samples", type=int, default=10)
    add("--far-rows", help="rows to ask at far lengths; default: all but attention")
    add("--off", help="lengths to ask at with frozen memories; default: those of --lengths, empty = none")
    add("--off-samples", type=int, help="default: those of --samples")
    add("--nouns", help="niah: word list of the keys")
    add("--adjectives", help="niah: the other word list")
    add("--test-seed", type=int, default=42, help="of the test samples")
    add("--max-new-tokens", type=int, help="default: 48 for niah (the longest value has 36), 20 for babilong")
    add("--tokenizer-for-length", help="what counts the test lengths; default: the models' tokenizer")
    add("--batch-size", type=int, default=16, help="test prompts at once")
    add("--batch-tokens", type=int, default=1 << 16, help="most test tokens at once")
    add("--piece", type=int, default=4096, help="tokens read at once")
    add("--jobs", type=int, default=1, help="models trained and tested side by side")
    add("--threads", type=int, default=1, help="of each job")
    add("--device", default="cpu", help="cpu, cuda or auto; default: cpu")
    add("--table-only", action="store_true", help="train and test nothing, write the results of what is there")
    add("--output", type=Path, help="the JSON; default: benchmarks/results/DATE_DEVICE_TASK.json")
    options = parser.parse_args(words)
    known = sorted(path.stem for path in (RECIPES / options.task).glob("*.toml"))
    what = f"a recipe of recipes/{options.task}"
    for flag, rows, task, others in (
        ("lessons", LESSON_ROWS, "babilong", ("late", "steps", "batch", "train_facts")),
        ("exact", EXACT_ROWS, "niah", ("late",)),
    ):
        if getattr(options, flag):
            known, what = list(rows), f"a row of --{flag}"
            for name in others:
                if getattr(options, name):
                    parser.error(f"--{name.replace('_', '-')} and --{flag} do not go together; leave one out")
            if options.task != task:
                parser.error(f"--{flag} is for {task}, and the task is {options.task}")
    options.rows = options.rows.split(",") if options.rows else known
    options.far_rows = options.far_rows.split(",") if options.far_rows else [r for r in known if r not in NOT_FAR]
    for row in [*options.rows, *options.far_rows]:
        if row not in known:
            parser.error(f"row {row!r} is not {what}; there are {', '.join(known)}")
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds {options.seeds!r} must be whole numbers with commas, such as 0,1,2")
    options.names = options.names or NAMES[options.task]
    options.lengths = LENGTHS[options.task] if options.lengths is None else options.lengths
    options.off = options.lengths if options.off is None else options.off
    options.off_samples = options.off_samples or options.samples
    options.max_new_tokens = options.max_new_tokens or NEW_TOKENS[options.task]
    if not options.table_only:
        wanted = ["train_text", "test_text"] + (["facts"] if options.task == "babilong" else [])
        wanted += ["train_facts"] if options.train_facts else []
        for name in wanted:
            value = getattr(options, name)
            if value is None or not Path(value).exists():
                shown = "is missing" if value is None else f"{value!r} does not exist"
                parser.error(f"--{name.replace('_', '-')} {shown}; name a file or folder")
    check_lengths(parser, options)
    options.as_given = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    for name in ("train_text", "test_text", "facts", "train_facts", "tokenizer", "nouns", "adjectives"):
        if getattr(options, name):  # the jobs run in the repository's root
            setattr(options, name, str(Path(getattr(options, name)).absolute()))
    options.work = options.work.absolute()
    return options


def check_lengths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse now what a worker would refuse after hours of training."""
    from titanslab.evaluation.cells import split_lengths, split_names
    from titanslab.tasks.babilong import TASKS
    from titanslab.tasks.niah import VARIANTS

    try:
        split_names(options.names, VARIANTS if options.task == "niah" else TASKS, "--names")
        for lengths in (options.lengths, options.far, options.off):
            if lengths:
                split_lengths(lengths, KILO[options.task])
    except ValueError as error:
        parser.error(str(error))


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


class Running:
    """A job in a process of its own, its words going to log.txt in its folder."""

    def __init__(self, job: Job, threads: int) -> None:
        self.name, self.begun = Path(job.folder).name, time.perf_counter()
        self.log = Path(job.folder) / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        count = str(threads)
        environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONUNBUFFERED": "1"}
        if threads == 1:
            environment["TOKENIZERS_PARALLELISM"] = "false"
        words = [sys.executable, "-m", "benchmarks.long_context_row", job.to_json()]
        with open(self.log, "a", encoding="utf-8") as file:
            self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=file)

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "starting"


def run_jobs(jobs: list[Job], at_once: int, threads: int, every: float = 30.0) -> list[str]:
    """Run all jobs, so many side by side; returns the names of those that failed."""
    waiting, active, failed, seconds = list(jobs), list[Running](), list[str](), list[float]()
    told = time.perf_counter()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the jobs end with this process
    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                active.append(Running(waiting.pop(0), threads))
                say(f"{active[-1].name}: started, {len(waiting)} waiting; log: {active[-1].log}")
            time.sleep(0.5)
            for run in [run for run in active if run.process.poll() is not None]:
                active.remove(run)
                if run.process.returncode:
                    failed.append(run.name)
                    say(f"{run.name}: FAILED: {run.last_words()}")
                else:
                    seconds.append(time.perf_counter() - run.begun)
                    left = sum(seconds) / len(seconds) * (len(waiting) + len(active)) / at_once
                    say(f"{run.name}: done in {seconds[-1]:,.0f} s; the rest takes about {left / 60:,.0f} min")
            if time.perf_counter() - told >= every:
                told = time.perf_counter()
                for run in active:
                    say(f"{run.name}: {run.last_words()}")
    finally:
        for run in active:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGTERM)
        for run in active:
            run.process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed


def write_results(options: argparse.Namespace) -> None:
    """JSON, table and picture of all that the work folder holds."""
    import torch

    from benchmarks.long_context_table import collect, draw, markdown
    from titanslab.evaluation.results import write_whole

    results, missing = collect(options.work)
    if not results:
        raise SystemExit(f"no finished run in {options.work}; nothing to write")
    torch.set_num_threads(max(1, min(options.jobs * options.threads, os.cpu_count() or 1)))
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    settings = {name: value for name, value in options.as_given.items() if name != "table_only"}
    report = Report(options.task, options.test_seed, device, settings, path=options.output)
    for name, reason in missing:
        report.missing(name, reason)
    report.content["results"] = results
    path = report.finish()
    text = markdown(options.task, results)
    table = path.with_suffix(".md")
    write_whole(table, f"`{command()}`\n\n{text}")
    say(f"wrote {table}")
    draw(path, options.task, results, f"{options.task}, commit {str(report.content['commit'])[:9]}")
    print(text)


def main(words: list[str] | None = None) -> int:
    from titanslab.cli.quiet import quiet_libraries

    options = read_arguments(words)
    quiet_libraries()
    failed: list[str] = []
    if not options.table_only:
        from benchmarks.long_context_tokenizer import make_tokenizer

        options.work.mkdir(parents=True, exist_ok=True)
        tokenizer = Path(options.tokenizer) if options.tokenizer else options.work / "tokenizer"
        if not options.tokenizer:
            stories = options.task == "babilong" and not options.train_facts
            make_tokenizer(options.train_text, options.train_facts, tokenizer, stories)
        try:
            jobs = make_jobs(options, tokenizer)
            failed = run_jobs(jobs, options.jobs, options.threads)
        except ValueError as error:
            say(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here")
            return 130
    write_results(options)
    if failed:
        say(f"failed: {', '.join(failed)}; see log.txt in their folders of {options.work}, the same command goes on")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
