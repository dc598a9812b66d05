"""A `MemoryTrace` as an HTML page that needs no other file: the text with coloured tokens, and a picture."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titanslab.data.encode import TextDecoder
from titanslab.evaluation.pictures import plot_trace
from titanslab.evaluation.trace import MemoryTrace
from titanslab.files import write_whole

PAGE = Path(__file__).with_name("trace_page.html")  # the template; its words in capitals are replaced


def write_report(
    trace: MemoryTrace, tokens: Sequence[str], folder: Path, *, title: str, subtitle: str, about: dict[str, Any]
) -> list[Path]:
    """Write inspect.html, inspect.png and inspect.json into `folder`, which is made, and return their paths.

    Args:
        trace, tokens: the trace and the text of each of its tokens.
        title, subtitle: of the page and the picture.
        about: values that inspect.json holds beside those of the trace.

    Raises:
        ValueError: `tokens` has another length than the trace.
    """
    if len(tokens) != trace.per_token["surprise"].shape[1]:
        raise ValueError(
            f"tokens must hold one text per token, {trace.per_token['surprise'].shape[1]}, got {len(tokens)}"
        )
    page, picture, numbers = (folder / f"inspect.{suffix}" for suffix in ("html", "png", "json"))
    folder.mkdir(parents=True, exist_ok=True)
    plot_trace(trace, picture, f"{title}\n{subtitle}")
    values = trace.to_dict()
    write_whole(numbers, json.dumps(about | values) + "\n")
    shown = {name: values[name] for name in trace.per_token}
    parts = {
        "SUBTITLE": html.escape(subtitle),
        "TITLE": html.escape(title),
        "PICTURE": f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}",
        "DATA": json.dumps(shown, allow_nan=False).replace("</", "<\\/"),
        "TOKENS": "".join(f"<span>{html.escape(token)}</span>" for token in tokens),
    }
    # one pass over the template: placeholders that the text itself spells stay
    pieces = re.split("(" + "|".join(parts) + ")", PAGE.read_text(encoding="utf-8"))
    write_whole(page, "".join(parts.get(piece, piece) for piece in pieces))
    return [page, picture, numbers]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; that of a character of several tokens is the last one's, the others' is empty."""
    decoder = TextDecoder(tokenizer)
    texts = [decoder.add([int(token)]) for token in ids]
    return [*texts[:-1], texts[-1] + decoder.rest()] if texts else []
