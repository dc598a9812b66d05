"""`titans ask`: answer a question from a memory file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.errors import in_utf8
from titanslab.cli.options import MOST_SEED, Device, Learn, MaxNewTokens, MemoryModel, Overwrite, Template


def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    memory: Annotated[Path, typer.Option("--memory", help="A file of titans read.", show_default=False)],
    model: MemoryModel = None,
    learn: Learn = None,
    save: Annotated[Path | None, typer.Option("--save", help="Save the memory after the answer in this file.")] = None,
    overwrite: Overwrite = False,
    template: Template = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="0 always takes the likeliest token; default: the model's own, else 0."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed gives the same answer.")] = 0,
    device: Device = "auto",
) -> None:
    """Ask a model about a text that it has read; the memory file is not changed.

    Example: [bold]titans ask --memory book.memory "Who came to the door?"[/bold]

    The question is put as the model was trained to be asked, where its folder says so.
    """
    text = in_utf8(sys.stdin.read() if question == "-" else question, "the question")
    if not text.strip():
        raise ValueError('the question is empty; ask one: titans ask --memory book.memory "Who came to the door?"')
    template = read_template(template)
    from contextlib import ExitStack

    from titanslab.cli.generate import TextWriter
    from titanslab.locks import only_writer
    from titanslab.reading.files import check_memory_file, check_place, check_save, load_reader

    check_memory_file(memory, "--memory")
    with ExitStack() as held:
        if save is not None:
            check_place(save, "--save")
            held.enter_context(only_writer(save, "--save"))
            check_save(save, overwrite=overwrite)
        network, tokenizer, cache, folder = load_reader(model, memory, device)
        from accelerate.utils import set_seed

        from titanslab.data.template import question_prompt
        from titanslab.reading.answer import Manner, Sampling, answer

        assert cache is not None
        before = cache.learn
        set_freeze(cache, learn)
        set_seed(seed)
        manner = Manner(template, max_new_tokens, temperature)
        sampling = manner.sampling(network, Sampling())
        prompt = question_prompt(tokenizer, text, template)
        writer = TextWriter(tokenizer, sampling.max_new_tokens)
        said, cache = answer(network, tokenizer, cache, prompt, sampling, writer)
        if not said.strip():
            print(f"titans: {empty_answer(prompt)}", file=sys.stderr)
        if save is not None:
            cache.learn = before
            cache.save(save, network, {"model": folder})


def read_template(template: str | None) -> str | None:
    """The value of --template with new lines in place of `\\n`; ValueError where it does not hold {question}."""
    if template is None:
        return None
    from titanslab.data.template import check_template

    return in_utf8(check_template(template.replace("\\n", "\n"), "--template"), "--template")


def empty_answer(prompt: str) -> str:
    """A remark about an answer without text: the reason, and the next thing to try."""
    return (
        f"the answer is empty: the model ended it at once after reading {prompt!r}; word the question as in the texts "
        "that the model was trained on, or give their form with --template, such as --template ' {question}'"
    )


def set_freeze(cache: Any, learn: bool | None) -> None:
    """Set whether the memories of a cache are updated, None = no change; ValueError if the model has no memory."""
    from titanslab.reading.models import can_freeze

    if learn is False and not can_freeze(cache):
        raise ValueError("--no-learn freezes a memory, and a model of variant 'attention' has none")
    cache.learn = cache.learn if learn is None else learn
