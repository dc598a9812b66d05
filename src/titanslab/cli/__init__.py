"""The `titans` command: one module per verb, imported when its verb is called."""

from __future__ import annotations

import signal
import sys
import threading

# verb -> (module with a function or a typer.Typer of the verb's name; its line in `titans --help`)
VERBS = {
    "quickstart": ("titanslab.cli.quickstart", "See a memory recall facts that a window cannot, in minutes."),
    "train": ("titanslab.cli.train", "Train a model from a recipe into a run folder."),
    "graft": ("titanslab.cli.graft", "Give a pretrained model a memory, and train it on long documents."),
    "tokenizer": ("titanslab.cli.tokenizer", "Make a tokenizer from texts, for models trained on them."),
    "tokenize": ("titanslab.cli.tokenize", "Make tokens of texts, in a folder that recipes name as data."),
    "generate": ("titanslab.cli.generate", "Continue a prompt with a trained model."),
    "read": ("titanslab.cli.read", "Read a text of any length into a memory file."),
    "ask": ("titanslab.cli.ask", "Ask a model about a text that it has read."),
    "chat": ("titanslab.cli.chat", "Talk with a model; the session is kept in a file."),
    "inspect": ("titanslab.cli.inspect", "Show surprise, gates and weights of a model's memory on a text."),
    "forecast": ("titanslab.cli.forecast", "Forecast the rows after the end of a CSV file, with a plot."),
    "track": ("titanslab.cli.track", "Write loss and surprise along a genome, for a genome browser."),
    "evaluate": (
        "titanslab.cli.evaluate",
        "Measure a model: perplexity by position, recall, common sense, series, DNA.",
    ),
    "reproduce": ("titanslab.cli.reproduce", "Train and test all models of a table, such as niah or babilong."),
    "info": ("titanslab.cli.info", "Show versions, devices, memory backends and what a model costs."),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 when done, 2 with one line on stderr when not, 130 after Ctrl-C or SIGTERM.

    `--debug` before the verb, or TITANS_DEBUG=1, shows the traceback of an error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    before = None
    try:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: keeps the work done
        from titanslab.cli.root import run

        code = run(arguments)
    except BaseException as error:
        from titanslab.cli.errors import exit_code, wants_traceback

        if wants_traceback(arguments, error):
            raise
        code = exit_code(error)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    sys.exit(code)
