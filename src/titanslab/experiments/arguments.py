"""The command line of `titanslab.experiments.long_context`, checked, and the rows it can name."""

import argparse
from pathlib import Path

from titanslab.experiments.machine import ROOT
from titanslab.experiments.row import KILO

RECIPES = ROOT / "recipes"


# The memory's convolutions and their start; positions turn too slowly to matter, or the start would find nothing.
RECALL = ("model.attention_conv_size=8", 'model.rope_parameters={"rope_theta"=1e30}')


def in_the_macs_place(lmm: int, mal: int, mag: int, attention: int, recall: int) -> dict[str, tuple[str, ...]]:
    """Rows that change a recipe's MAC to other models; the numbers are the MLP widths that make them as large."""

    def row(variant: str, width: int, *more: str) -> tuple[str, ...]:
        return (f"model.variant={variant}", f"model.intermediate_size={width}", *more)

    near, everything = "model.window_size=64", "model.window_size=all"
    return {
        "mac": (),
        "lmm": row("lmm", lmm),
        "mal": row("mal", mal, near),
        "mag": row("mag", mag, near),
        "window": row("attention", attention, near),
        "attention": row("attention", attention, everything),
        "window_recall": row("attention", recall, near, *RECALL),
        "attention_recall": row("attention", recall, everything, *RECALL),
    }


LESSON_ROWS = in_the_macs_place(lmm=472, mal=296, mag=256, attention=544, recall=536)
EXACT_ROWS = in_the_macs_place(lmm=664, mal=488, mag=448, attention=736, recall=728)
# Attention over all tokens takes quadratic time: it is left out at the far lengths unless asked for.
NOT_FAR = {"attention", "attention_recall"}
NAMES = {"niah": "single_1,single_2,single_3", "babilong": "qa1,qa2,qa3,qa4,qa5"}
LENGTHS = {"niah": "2k,4k,8k,16k", "babilong": "0k,1k,2k,4k,8k,16k"}
NEW_TOKENS = {"niah": 48, "babilong": 20}


def read_arguments(words: list[str] | None = None, description: str = "") -> argparse.Namespace:
    """The command line, checked; relative defaults are those of the task."""
    parser = argparse.ArgumentParser(
        prog="python -m titanslab.experiments.long_context",
        description=description,
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
    from titanslab.tasks.cells import split_lengths, split_names
    from titanslab.tasks.table import TASKS

    try:
        split_names(options.names, TASKS[options.task].parts, "--names")
        for lengths in (options.lengths, options.far, options.off):
            if lengths:
                split_lengths(lengths, KILO[options.task])
    except ValueError as error:
        parser.error(str(error))
