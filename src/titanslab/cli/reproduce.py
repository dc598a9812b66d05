"""`titans reproduce`: the models of a table, trained and asked as a study describes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


_text = partial(_option, "Texts")
_model = partial(_option, "Models")
_question = partial(_option, "Questions")
_process = partial(_option, "Processes and results")


def reproduce(
    context: typer.Context,
    study: Annotated[
        str,
        typer.Argument(
            help="table1, depth, ablation, throughput, niah, babilong, forecasting, dna, genome, graft, or the path "
            "of a study of yours, a TOML file."
        ),
    ],
    work: Annotated[
        Path | None,
        typer.Option("--work", "-w", help="Folder of tokenizer, runs, answers and results; default: runs/STUDY."),
    ] = None,
    data: Annotated[
        list[str] | None,
        _text(
            "table1, depth, ablation, throughput, graft: running text; genome: FASTA. Files whose names say validation "
            "are held out. Repeatable; default: 1 MB of books in the package. forecasting, dna: the folder of the sets."
        ),
    ] = None,
    validation: Annotated[list[str] | None, _text("Held-out text for --data; repeatable.")] = None,
    base: Annotated[str | None, _text("graft: folder of the language model that gets a memory.")] = None,
    language_data: Annotated[
        str | None, _text("table1: folder of the common-sense tasks, see titans evaluate language.")
    ] = None,
    train_text: Annotated[str | None, _text("Text to train on: a file or folder of text, json or jsonl.")] = None,
    test_text: Annotated[str | None, _text("Other text, to test on.")] = None,
    facts: Annotated[str | None, _text("babilong: folder of bAbI's files, to test on.")] = None,
    train_facts: Annotated[str | None, _text("babilong: bAbI's files to train on; default: generated stories.")] = None,
    nouns: Annotated[str | None, _text("niah: word list for keys, one word a line.")] = None,
    adjectives: Annotated[str | None, _text("niah: the other word list for keys.")] = None,
    tokenizer: Annotated[str | None, _text("A tokenizer to use; default: one made of the training text.")] = None,
    sets: Annotated[str | None, _model("Sets of rows, with commas; default: main.")] = None,
    rows: Annotated[str | None, _model("Rows of these sets, with commas; default: all.")] = None,
    seeds: Annotated[str, _model("Seeds, with commas.")] = "0",
    scale: Annotated[str, _model("Size of models and runs: cpu, gpu or paper, where the study has it.")] = "cpu",
    budget: Annotated[float, _model("Share of the steps, tokens and samples, such as 0.01 for a trial.")] = 1.0,
    stage: Annotated[
        str | None, _model("Train up to this stage and ask its model; default: the last one that is not optional.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        _model(
            "Change a recipe, such as training.steps=200, late:training.steps=50 or mac:model.chunk_size=8, or the "
            "questions and measures, such as ask.frozen=2k or sweep.rates=[1e-3]; repeatable.",
            "--set",
            metavar="[SET:|ROW:|STAGE:]KEY=VALUE",
        ),
    ] = None,
    names: Annotated[str | None, _question("Variants or sub-tasks, with commas; default: the study's.")] = None,
    lengths: Annotated[str | None, _question("Lengths in tokens, such as 2k,4k; default: the study's.")] = None,
    samples: Annotated[int | None, _question("Samples per name and length; default: the study's.", min=1)] = None,
    far: Annotated[str | None, _question("Longer lengths with fewer samples, such as 128k,1M.")] = None,
    far_samples: Annotated[int | None, _question("Samples at these lengths; default: the study's.", min=1)] = None,
    far_rows: Annotated[
        str | None, _question("Rows that are asked at these lengths; default: all but full attention.")
    ] = None,
    jobs: Annotated[int, _process("Models at a time, a process each.", min=1)] = 1,
    threads: Annotated[int, _process("Threads of each process.", min=1)] = 1,
    device: Annotated[str, _process("cpu, cuda, ...; auto takes a GPU where there is one.")] = "cpu",
    output: Annotated[
        Path | None, _process("The JSON of the results; default: WORK/results.json.", "--output", "-o")
    ] = None,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Write the results that the work folder holds; train and ask nothing.")
    ] = False,
    list_rows: Annotated[
        bool, typer.Option("--list", help="Print the rows with their sizes and stages, and the texts that are needed.")
    ] = False,
    recipes: Annotated[
        bool,
        typer.Option("--recipes", help="Write the tokenizer and the rows' recipes for titans train; train nothing."),
    ] = False,
) -> None:
    """Train the models of a table and ask them all the same questions; run again to continue.

    Example: [bold]titans reproduce ablation --data books/ --budget 0.01 --jobs 2[/bold]

    Finished runs and answers are kept: with more rows, seeds, samples or lengths, the command adds the missing ones.
    WORK/results.json, results.md and results.png hold the results of everything in the work folder.
    """
    from titanslab.cli.errors import Interrupted
    from titanslab.experiments.run import choose, print_rows, recipe_commands, run_study, write_results
    from titanslab.experiments.study_file import load_study
    from titanslab.runs.loading import quiet_libraries

    plan = load_study(study, scale, budget)
    quiet_libraries()
    if list_rows:
        return print_rows(plan, sets)
    choice = choose(plan, context.params)
    if recipes:
        return typer.echo("\n".join(recipe_commands(plan, choice)))
    failed: list[str] = []
    try:
        if not table_only:
            failed = run_study(plan, choice, jobs, threads)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues from here") from None
    try:
        typer.echo(write_results(plan, choice, context.params, output).read_text(encoding="utf-8"))
    except ValueError:  # without a finished run there is no table
        if not failed:
            raise
    if failed:
        typer.echo(f"failed: {', '.join(failed)}; see log.txt in their folders, the same command continues", err=True)
        raise typer.Exit(1)
