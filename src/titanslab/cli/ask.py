"""`titans ask`: answer a question from a memory file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titanslab.cli.errors import in_utf8
from titanslab.cli.options import TEMPLATE, Device, Learn, MaxNewTokens, MemoryModel, Temperature, Template

if TYPE_CHECKING:
    from titanslab.models.cache import TitansCache


def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    memory: Annotated[Path, typer.Option("--memory", help="A file of titans read.", show_default=False)],
    model: MemoryModel = None,
    learn: Learn = None,
    save: Annotated[Path | None, typer.Option("--save", help="Save the memory after the answer in this file.")] = None,
    template: Template = TEMPLATE,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = 0,
    device: Device = "auto",
) -> None:
    """Ask a model about a text that it has read; the memory file is not changed.

    Example: [bold]titans ask --memory book.memory "Who came to the door?"[/bold]
    """
    text = sys.stdin.read() if question == "-" else question
    prompt = fill_template(template, text)
    from titanslab.cli.generate import TextWriter
    from titanslab.reading.files import check_save, load_reader, read_notes

    if save is not None:
        check_save(save)
        if save.exists():
            read_notes(save, given_as="--save")
    network, tokenizer, cache, folder = load_reader(model, memory, device)
    from accelerate.utils import set_seed

    from titanslab.reading.answer import Sampling, answer

    assert cache is not None
    before = cache.learn
    set_freeze(cache, learn)
    set_seed(seed)
    sampling = Sampling(max_new_tokens, temperature)
    _, cache = answer(network, tokenizer, cache, prompt, sampling, TextWriter(tokenizer, max_new_tokens))
    if save is not None:
        cache.learn = before
        cache.save(save, network, {"model": folder})


def fill_template(template: str, text: str) -> str:
    """The template with `text` in place of {question} and new lines in place of `\\n`."""
    if "{question}" not in template:
        raise ValueError(f"--template must hold {{question}}, got {template!r}")
    return in_utf8(template.replace("\\n", "\n").replace("{question}", text), "the question")


def set_freeze(cache: TitansCache, learn: bool | None) -> None:
    """Set whether the memories of a cache are updated, None = no change; ValueError if the model has no memory."""
    if learn is False and cache.config.variant == "attention":
        raise ValueError("--no-learn freezes a memory, and a model of variant 'attention' has none")
    cache.learn = cache.learn if learn is None else learn
