"""Cells, tables and sections of a Markdown page."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import TextWrapper


def number(value: float | None) -> str:
    """A percentage or a count with at most one decimal, or an empty cell."""
    return "" if value is None else f"{value:,.1f}".removesuffix(".0")


def times(value: float | None) -> str:
    """A ratio: two decimals below 10, one below 100."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def length_name(length: int, unit: int) -> str:
    """2048 as "2K", 16000 as "16k", a million of either as "1M"."""
    if length >= unit * unit:
        return f"{length // (unit * unit)}M"
    return f"{length // unit}{'K' if unit == 1024 else 'k'}"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table below its caption, the first column aligned left and the others right; "" without rows."""
    if not (rows := list(rows)):
        return ""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (header, *rows)]
    return "\n".join([f"**{caption}**", "", lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]])


def sources(files: Iterable[str], size: str | None = None) -> str:
    """The line below a group of tables: sizes of the models, and links to the files."""
    links = []
    for file in dict.fromkeys(file.partition("#")[0] for file in files):
        links.append(f"[{Path(file).stem}]({file.removeprefix('docs/') if file.startswith('docs/') else '../' + file})")
    return (f"Size: {size}. " if size else "") + f"{'Files' if len(links) > 1 else 'File'}: {', '.join(links)}"


def wrapped(text: str) -> str:
    """The paragraphs of `text` in lines of 120 characters."""
    wrap = TextWrapper(120, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(wrap.fill(paragraph) for paragraph in text.strip().split("\n\n"))


def section(title: str, text: str, tables: Iterable[str], command: str, foot: str) -> str:
    """A heading, its text, the tables that have rows, the command that measures them, and the files."""
    parts = [f"### {title}", wrapped(text), *tables, f"```sh\n{command.strip()}\n```", wrapped(foot)]
    return "\n\n".join(part for part in parts if part)


def millions(parameters: Iterable[int | None]) -> str | None:
    """The sizes of some models, such as "0.96 to 1.01 million parameters"."""
    found = sorted(p for p in parameters if p)
    ends = dict.fromkeys(f"{p / 1e6:.2f}" for p in (found[0], found[-1])) if found else ()
    return " to ".join(ends) + " million parameters" if ends else None
