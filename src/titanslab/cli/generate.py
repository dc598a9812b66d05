"""`titans generate`: continue a prompt."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.errors import in_utf8
from titanslab.cli.options import Device, Temperature
from titanslab.progress import bar


def generate(
    model: Annotated[str, typer.Option("--model", "-m", help="A run folder or a saved model.", show_default=False)],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The text to continue.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is stdin.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation in tokens.")] = 128,
    temperature: Temperature = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens up to this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    device: Device = "auto",
) -> None:
    """Continue a prompt with a trained model; the new text is written to stdout token by token.

    Example: [bold]titans generate --model runs/tiny --prompt "Once upon a time" --max-new-tokens 200[/bold]
    """
    text = read_prompt(prompt, file)
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
        sampling.generate(network, tokenizer, ids, TextWriter(tokenizer, max_new_tokens))


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from --prompt or --file, which exclude each other."""
    if (prompt is None) == (file is None):
        raise ValueError("give the text to continue, either as --prompt TEXT or as --file PATH")
    if file is None:
        assert prompt is not None
        return in_utf8(prompt, "--prompt")
    if str(file) == "-":
        return in_utf8(sys.stdin.buffer.read().decode("utf-8", "surrogateescape"), "the prompt")
    from titanslab.data.text import whole_text

    return whole_text(file, f"prompt file {str(file)!r}")


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
