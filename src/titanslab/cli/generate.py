"""`titans generate`: continue a prompt."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.errors import in_utf8
from titanslab.progress import bar

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def generate(
    model: Annotated[str, typer.Option("--model", "-m", help="A run folder or a saved model.", show_default=False)],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The text to continue.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is stdin.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens up to this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")] = "auto",
) -> None:
    """Continue a prompt with a trained model; the new text goes to stdout as it comes.

    Example: [bold]titans generate --model runs/tiny --prompt "Once upon a time" --max-new-tokens 200[/bold]
    """
    text = read_prompt(prompt, file)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {top_p}")
    from titanslab.runs.loading import open_model

    network, tokenizer, _ = open_model(model, device)
    import torch
    from accelerate.utils import set_seed

    from titanslab.data import TextEncoder, padding_id

    encoder = TextEncoder(tokenizer)
    start = [] if encoder.bos is None else [encoder.bos]
    ids = torch.tensor([[*start, *map(int, encoder.encode([text])[0])]], dtype=torch.int64, device=network.device)
    if ids.shape[1] == 0:
        raise ValueError("the prompt is empty and the tokenizer has no start token; give --prompt some text")
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    set_seed(seed)
    writer = TextWriter(tokenizer, max_new_tokens)
    with torch.inference_mode():
        network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=padding_id(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            streamer=writer,
            **options,
        )


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from --prompt or --file, which exclude each other."""
    if (prompt is None) == (file is None):
        raise ValueError("give the text to continue, either as --prompt TEXT or as --file PATH")
    if file is None:
        assert prompt is not None
        return in_utf8(prompt, "--prompt")
    try:
        return sys.stdin.buffer.read().decode("utf-8") if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {str(file)!r} is not text in UTF-8: {error.reason}") from error


class TextWriter:
    """Writes tokens to stdout as text while they come; a character of several tokens waits for all.

    Where stdout is not a terminal and stderr is, a bar on stderr shows how far it has got.
    """

    def __init__(self, tokenizer: Any, total: int) -> None:
        self.tokenizer = tokenizer
        self.shown: list[int] = []
        self.waiting: list[int] = []
        self._prompt_seen = False
        self._total, self._done = total, 0
        self._open, self._show = ExitStack(), None
        if sys.stderr.isatty() and not sys.stdout.isatty():
            self._show = self._open.enter_context(bar("generating", "tokens"))

    def put(self, value: Any) -> None:
        """Called by generate(): first with the prompt, then with each new token [1]."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.waiting += value.flatten().tolist()
        self._done += value.numel()
        if self._show is not None:
            self._show(self._done, self._total)
        text = self._new_text()
        if text and not text.endswith("\ufffd"):
            self._write(text)

    def end(self) -> None:
        """Called by generate() after the last token."""
        self._open.close()
        self._write(self._new_text())
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _new_text(self) -> str:
        # Decoded together with what came before: tokenizers treat the start of a text in their own ways.
        before = self._decode(self.shown)
        return self._decode(self.shown + self.waiting)[len(before) :]

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self.shown, self.waiting = (self.shown + self.waiting)[-8:], []
        while self.shown and "\ufffd" in self._decode(self.shown)[:1]:
            self.shown = self.shown[1:]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
