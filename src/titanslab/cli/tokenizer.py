"""`titans tokenizer`: make a tokenizer from texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tokenizer(
    texts: Annotated[
        list[str], typer.Argument(help="Texts: files, folders, patterns, or a dataset on the hub.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the tokenizer.", show_default=False)],
    vocab: Annotated[int, typer.Option("--vocab", help="The number of tokens.")] = 2048,
    characters: Annotated[
        int, typer.Option(min=1, help="Most characters to read; of several files, as many of each.")
    ] = 20_000_000,
    text_column: Annotated[str, typer.Option(help="The column of JSONL, parquet or hub data.")] = "text",
) -> None:
    """Make a tokenizer from texts, for models to be trained on them: byte-level BPE.

    Example: [bold]titans tokenizer book.txt --vocab 2048 --output tok[/bold]

    It encodes any text, not these alone. The same texts give the same tokenizer. In a recipe, data.tokenizer = "tok"
    uses it, and data.tokenizer = "bpe:2048" makes one of the training text and keeps it in the run folder.
    """
    from titanslab.data.bpe import check_size, corpus_bpe
    from titanslab.data.corpus import open_corpus
    from titanslab.files import check_new_folder, write_whole

    check_size(vocab, "--vocab")
    check_new_folder(output, "--output")
    corpus = open_corpus(texts[0] if len(texts) == 1 else texts, "texts", column=text_column, streaming=True)
    from titanslab.data.encode import TextEncoder
    from titanslab.progress import bar
    from titanslab.runs.loading import quiet_libraries

    quiet_libraries()
    with bar("making the tokenizer"):
        made = corpus_bpe(corpus, vocab, characters)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, made.save_pretrained)
    sample = next(corpus.beginnings(100_000))
    per_token = len(sample.encode()) / max(1, len(TextEncoder(made).ids(sample)))
    if len(made) < vocab:
        typer.echo(f"{vocab:,} tokens were asked for; these texts give {len(made):,}", err=True)
    typer.echo(f"{output}: {len(made):,} tokens, of {per_token:.2f} bytes on the first text")
    typer.echo(f"Next: titans train RECIPE.toml --set data.tokenizer={output}")
