"""`titans evaluate`: perplexity on a text; `titans evaluate TASK` runs a task of the table, or lm-eval's tasks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.errors import Interrupted, UsageError
from titanslab.cli.evaluate_dna import ABOUT as DNA_ABOUT
from titanslab.cli.evaluate_dna import dna
from titanslab.cli.evaluate_forecasting import ABOUT as FORECASTING_ABOUT
from titanslab.cli.evaluate_forecasting import forecasting
from titanslab.cli.evaluate_graft import ABOUT as GRAFT_ABOUT
from titanslab.cli.evaluate_graft import graft
from titanslab.cli.evaluate_language import ABOUT as LANGUAGE_ABOUT
from titanslab.cli.evaluate_language import language
from titanslab.cli.options import MOST_SEED, Device, command, output_folder
from titanslab.cli.words import check_words
from titanslab.tasks.table import TASKS, Task

COMMAND = "titans evaluate"
# beside the tasks of the table
VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "language": (language, LANGUAGE_ABOUT),
    "forecasting": (forecasting, FORECASTING_ABOUT),
    "dna": (dna, DNA_ABOUT),
    "graft": (graft, GRAFT_ABOUT),
}
OWN_OPTIONS_AT = 3  # a task's own options stand after --model, --lengths and --samples


class TaskGroup(typer.core.TyperGroup):
    """A command group with the verbs of `verb_names`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return verb_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in VERBS:
            return command(VERBS[cmd_name][0], cmd_name, VERBS[cmd_name][1])
        return task_command(TASKS[cmd_name]) if cmd_name in self.list_commands(ctx) else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not args[0].startswith("-") and args[0] not in (known := self.list_commands(ctx)):
            raise UsageError.of_name("command", args[0], known, COMMAND)
        return super().resolve_command(ctx, args)


def verb_names() -> list[str]:
    """The names of the tasks of the table that have cells, and of `VERBS`."""
    return [*(task.name for task in TASKS.values() if task.cells is not None), *VERBS]


evaluate = typer.Typer(cls=TaskGroup, add_completion=False, invoke_without_command=True, rich_markup_mode="rich")


@evaluate.callback()
def perplexity(
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A run folder or a saved model; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Text, JSONL, parquet, a folder, or a dataset on the hub; repeatable."),
    ] = None,
    context_length: Annotated[
        list[int] | None,
        typer.Option("--context-length", "-c", min=1, help="Tokens of a window; repeatable. Default 1024."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest number of tokens to score.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 8,
    whole_windows: Annotated[
        bool, typer.Option("--whole-windows", help="Score windows of the whole context length alone.")
    ] = False,
    text_column: Annotated[str, typer.Option(help="The column of JSONL, parquet or hub data.")] = "text",
    split: Annotated[str, typer.Option(help="The split of a hub dataset.")] = "test",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for JSON and PNG; default: MODEL/evaluation of a single model."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure how well a model predicts text: perplexity, bits per byte, and loss by position in the context.

    Example: [bold]titans evaluate --model runs/tiny --data book.txt -c 512 -c 4096[/bold]

    Any causal language model saved by Hugging Face can be measured, and several in one picture and one table. The
    loss by position, in the JSON and the PNG, shows whether the loss of later tokens is lower.
    """
    if context.invoked_subcommand is not None:
        return
    if not model or not data:
        raise ValueError("titans evaluate needs --model RUN and --data PATH (see titans evaluate --help)")
    from titanslab.cli.evaluate_text import Measurement, measure

    lengths = sorted(set(context_length or [1024]))
    measure(
        Measurement(model, data, lengths, batch_size, max_tokens, whole_windows, text_column, split), output, device
    )


def check_task_words(words: Sequence[str]) -> None:
    """UsageError for wrong words after `titans evaluate`: those of a task, or of the measurement of perplexity."""
    names = verb_names()
    if not words:
        raise UsageError(f"titans evaluate needs --model RUN and --data PATH, or a task: {', '.join(names)}", COMMAND)
    if not words[0].startswith("-") and words[0] not in names:
        raise UsageError.of_name("command", words[0], names, COMMAND)
    if words[0] in VERBS:
        check_words(VERBS[words[0]][0], words[1:], f"{COMMAND} {words[0]}")
    elif words[0] in names:
        check_words(task_function(TASKS[words[0]]), words[1:], f"{COMMAND} {words[0]}")
    else:
        check_words(perplexity, words, COMMAND, names)


def task_command(task: Task) -> Any:
    """The command of a task."""
    return command(task_function(task), task.name, task.about)


def task_function(task: Task) -> Callable[..., None]:
    """The function of a task: the options that all tasks share, with the task's defaults, and its own options."""
    defaults = {"lengths": task.lengths, "samples": task.samples, "max_new_tokens": task.max_new_tokens}
    shared = [
        p.replace(default=defaults.get(p.name, p.default))
        for p in signature(shared_options, eval_str=True).parameters.values()
    ]
    text = f"Lengths in tokens, such as {task.lengths},1M; k is {task.kilo}."
    shared[1] = shared[1].replace(annotation=Annotated[str, typer.Option(help=text)])
    own = []
    for option in task.options:
        kind: Any = option.type | None if option.default is None else option.type
        annotation = Annotated[kind, typer.Option(help=option.help)]
        own.append(Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation))
    parameters = [*shared[:OWN_OPTIONS_AT], *own, *shared[OWN_OPTIONS_AT:]]

    def verb(**values: Any) -> None:
        evaluate_task(task, {option.name: values.pop(option.name) for option in task.options}, values)

    example = f"titans evaluate {task.name} --model runs/tiny {task.example}".strip()
    verb.__doc__ = f"{task.help}\n\nExample: [bold]{example}[/bold]"
    verb.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return verb


def shared_options(
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="A run folder or a saved model.", show_default=False)],
    lengths: str,
    samples: Annotated[int, typer.Option(min=1, help="Samples per sub-task and length.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for results; default: MODEL/evaluation/TASK; run again to go on."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed makes the same samples.")] = 42,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts at once.")] = 16,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most prompt tokens at once.")] = 1 << 16,
    piece: Annotated[int, typer.Option(min=1, help="Tokens a Titans model reads at once.")] = 4096,
    tokenizer_for_length: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer that measures lengths: byte, a tokenizer, or a folder with GPT-2's encoder.json and "
            "vocab.bpe; default: the model's own."
        ),
    ] = None,
    sample_folder: Annotated[
        Path | None, typer.Option("--sample-cache", help="Folder that keeps samples; default: inside the output.")
    ] = None,
    learn: Annotated[
        bool, typer.Option("--learn/--no-learn", help="Whether memories write; off shows their share in the answers.")
    ] = True,
    forget: Annotated[
        bool,
        typer.Option("--forget/--no-forget", help="Whether memories fade; off for texts far beyond the training rows."),
    ] = True,
    device: Device = "auto",
) -> None:
    """The options that all tasks share, under the names of the fields of `TaskRun`; only this signature is used."""


def evaluate_task(task: Task, own: dict[str, Any], shared: dict[str, Any]) -> None:
    """Run a task on a model, print its tables, and write results.jsonl, summary.json and heat_map.png.

    Args:
        task: a row of the table that has cells.
        own: the values of `task.options` by name.
        shared: the values of `shared_options` by name.
    """
    from titanslab.files import write_whole
    from titanslab.runs.loading import find_model_folder, pick_device, prepare_process

    folder = find_model_folder(shared["model"])
    _check_task_options(task, own, shared["lengths"])
    output = output_folder(shared["output"] or Path(shared["model"]) / "evaluation" / task.name)
    prepare_process()
    from rich.console import Console

    from titanslab.evaluation.pictures import heat_map
    from titanslab.evaluation.run_task import TaskRun, run_task
    from titanslab.evaluation.table import summarise, tables

    missing = [option for option in task.shorter if own[option] is None and shared["lengths"] == task.lengths]
    if missing:
        shared["lengths"] = task.shorter[missing[0]]
    run = TaskRun(task=task, options=own, **shared | {"output": output, "device": pick_device(shared["device"])})
    try:
        records = run_task(run, {"model": str(folder.resolve())})
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; finished answers are in {output}, the same command goes on") from None
    write_whole(output / "summary.json", json.dumps(summarise(records.everything), indent=1) + "\n")
    heat_map(records.everything, task, output / "heat_map.png")
    summary = summarise(records.asked)
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    amounts = f"{run.samples} sample{'s' * (run.samples > 1)} a cell; k is {task.kilo:,} tokens"
    for score, words in score_headings(summary, task.headings(own)).items():
        console.print(f"{task.title}: {words}, {amounts}", highlight=False)
        for part in tables(summary, task, score, "", console.width):
            console.print(part)
    if missing:
        console.print(f"Only {run.lengths} was asked: longer lengths need --{missing[0]}.")
    console.print(f"written: {output}/results.jsonl, summary.json, heat_map.png", soft_wrap=True)


def _check_task_options(task: Task, own: Mapping[str, Any], lengths: str) -> None:
    """FileNotFoundError or ValueError that names a wrong option, before the libraries of models are loaded."""
    from titanslab.data.text import find_files, local_path
    from titanslab.tasks.sample import split_lengths, split_names

    split_lengths(lengths, task.kilo, "--lengths")
    for option in task.options:
        value = own[option.name]
        if value is None or value == option.default:
            continue
        if option.is_path and not (value and local_path(value).exists()):
            find_files(value, f"--{option.name}")  # of a pattern
        if option.name == task.parts_option:
            split_names(value, task.parts, f"--{option.name}")


def score_headings(summary: list[dict[str, Any]], headings: Mapping[str, str]) -> dict[str, str]:
    """The scores that get a table of their own, with the words of `headings` about each.

    A score whose values are those of an earlier one in every cell is named in the heading of that one's table.
    """
    alike: dict[str, list[str]] = {}
    for score in summary[0]["scores"]:
        same = (name for name in alike if all(row["scores"][name] == row["scores"][score] for row in summary))
        alike.setdefault(next(same, score), []).append(score)
    return {
        score: headings.get(score, score) + "".join(f" ({name}: the same)" for name in names[1:])
        for score, names in alike.items()
    }
