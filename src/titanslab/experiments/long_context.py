"""S-NIAH and BABILong, trained short and tested long: every model of recipes/niah or recipes/babilong.

    python -m titanslab.experiments.long_context niah --train-text books.txt --test-text essays.txt --work runs/niah
    python -m titanslab.experiments.long_context niah ... --rows mac,lmm --seeds 0,1,2 --jobs 2 \\
        --far 128k,1M --far-samples 5
    python -m titanslab.experiments.long_context babilong --facts babi/ --train-text books.txt \\
        --test-text other_books.txt --work runs/babilong

Makes a tokenizer from the training texts, trains each row with each seed (`titans train`, resumable), asks each model
at all lengths, those with a memory also with writes frozen, and writes a JSON, a markdown table and a picture of all
that lies in the work folder to benchmarks/results. Interrupted, the same command goes on. With more rows, seeds,
samples or lengths it does what is missing. `--table-only` writes the results of what is there.

With --late every row that has a memory is trained in a second stage too, recipes/late/TASK.toml, and what that gives
is tested instead; without it the first stage is. One work folder holds both.

With --lessons (babilong) every row is trained in the lessons of recipes/lessons, one after the other, with hints; rows
are then mac, lmm, mal, mag, window and attention, models of one size in the MAC's place, and window_recall and
attention_recall, attention with the memory's convolutions and their start.

With --exact (niah) every row is trained as recipes/exact says, with a memory that overwrites exactly; the rows are then
the same eight.

BABILong is trained on stories of our own, or with --train-facts on bAbI's training files, and tested on those of
--facts. Rows are models of one size on the same data; what their recipes say can be changed by --set, for one row by
--set ROW:section.key=value, for the second stage by --set late:section.key=value, for a lesson by --set lesson-2:... .
"""

import argparse
import os
import sys
from pathlib import Path

from titanslab.experiments.arguments import read_arguments
from titanslab.experiments.jobs import run_jobs
from titanslab.experiments.plan import make_jobs
from titanslab.experiments.report import Report, command, say


def write_results(options: argparse.Namespace) -> None:
    """JSON, table and picture of all that the work folder holds."""
    import torch

    from titanslab.experiments.table import collect, draw, markdown
    from titanslab.files import write_whole

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
    from titanslab.runs.quiet import quiet_libraries

    options = read_arguments(words, __doc__ or "")
    quiet_libraries()
    failed: list[str] = []
    if not options.table_only:
        from titanslab.experiments.tokenizer import make_tokenizer

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
