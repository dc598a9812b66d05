"""`titans generate`: continue a prompt."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.errors import in_utf8
from titanslab.cli.options import MOST_SEED, Device, Temperature
from titanslab.progress import bar


def generate(
    model: Annotated[str, typer.Option("--model", "-m", help="A run folder or a saved model.", show_default=False)],
    text: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; without it, what a pipe gives.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The text to continue, as an option.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is stdin.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation in tokens.")] = 128,
    temperature: Temperature = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens up to this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed gives the same text.")] = 0,
    device: Device = "auto",
) -> None:
    """Continue a prompt with a trained model; the new text is written to stdout token by token.

    Example: [bold]titans generate --model runs/tiny "Once upon a time" --max-new-tokens 200[/bold]

    Example: [bold]echo "Once upon a time" | titans generate --model runs/tiny[/bold]
    """
    text = read_prompt(text, prompt, file)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {top_p}")
    from titanslab.runs.loading import open_model

    network, tokenizer = open_model(model, device)
    import torch
    from accelerate.utils import set_seed

    from titanslab.data import TextEncoder
    from titanslab.reading.answer import Sampling

    encoder = TextEncoder(tokenizer)
    ids = torch.tensor([encoder.start + encoder.ids(text)], dtype=torch.int64, device=network.device)
    if ids.shape[1] == 0:
        raise ValueError("the prompt is empty and the tokenizer has no start token; give --prompt some text")
    set_seed(seed)
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p)
    with torch.inference_mode():
        new = sampling.generate(network, tokenizer, ids, TextWriter(tokenizer, max_new_tokens))
    if not tokenizer.decode(new[0].tolist(), skip_special_tokens=True).strip():
        print("titans: the model ended the text at once; give it a longer or another prompt", file=sys.stderr)


def read_prompt(text: str | None, prompt: str | None, file: Path | None) -> str:
    """The prompt from the argument, --prompt or --file, which exclude each other, or else from a pipe.

    The new line at the end of a pipe's text is left out: `echo` adds it.
    """
    given = [name for name, value in (("PROMPT", text), ("--prompt", prompt), ("--file", file)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both give the text to continue; give one of them")
    words = prompt if text in (None, "-") else text
    if words is not None:
        return in_utf8(words, given[0])
    if file is None and (text == "-" or not sys.stdin.isatty()) and (piped := _stdin().removesuffix("\n")):
        return piped
    if file is None:
        raise ValueError('give the text to continue: titans generate --model RUN "Once upon a time" (or --file PATH)')
    if str(file) == "-":
        return _stdin()
    from titanslab.data.text import whole_text

    return whole_text(file, f"prompt file {str(file)!r}")


def _stdin() -> str:
    return in_utf8(sys.stdin.buffer.read().decode("utf-8", "surrogateescape"), "the prompt")


class TextWriter:
    """Writes the text of new tokens to stdout, for `generate(streamer=)`.

    Where stdout is not a terminal and stderr is, a bar on stderr shows the number of tokens so far.

    Args:
        tokenizer: of the model.
        total: the most tokens that may come.
    """

    def __init__(self, tokenizer: Any, total: int) -> None:
        from titanslab.data.encode import TextDecoder

        self._decoder = TextDecoder(tokenizer, skip_special_tokens=True)
        self._prompt_seen = False
        self._total, self._done = total, 0
        self._open, self._show = ExitStack(), None
        if sys.stderr.isatty() and not sys.stdout.isatty():
            self._show = self._open.enter_context(bar("generating", "tokens"))

    def put(self, value: Any) -> None:
        """Take the prompt, at the first call, or else new tokens [1]."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._done += value.numel()
        if self._show is not None:
            self._show(self._done, self._total)
        sys.stdout.write(self._decoder.add(value.flatten().tolist()))
        sys.stdout.flush()

    def end(self) -> None:
        """Take the end of the text."""
        self._open.close()
        sys.stdout.write(self._decoder.rest() + "\n")
        sys.stdout.flush()
