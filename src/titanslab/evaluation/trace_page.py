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

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<style>
body { font: 15px/1.6 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em;
  color: #222; background: #fff; }
#text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: 14px; }
#text span { border-radius: 2px; }
#bar { position: sticky; top: 0; background: #fff; padding: .6em 0; border-bottom: 1px solid #ddd; }
#scale { display: inline-block; width: 8em; height: .8em; vertical-align: middle; }
#tip { color: #555; min-height: 1.6em; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } select { font: inherit; }
</style></head><body>
<h1>TITLE</h1><p>SUBTITLE</p>
<div id="bar">Colour by <select id="what"></select> of <select id="block"></select>
 <span id="low"></span> <span id="scale"></span> <span id="high"></span><div id="tip">Point at a token.</div></div>
<div id="text">TOKENS</div>
<h2>Over the text</h2><img alt="surprise, gates and norms of the memory over the text" src="PICTURE">
<script type="application/json" id="data">DATA</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const spans = [...document.querySelectorAll("#text span")], names = ["surprise", "theta", "eta", "alpha"];
const what = document.getElementById("what"), block = document.getElementById("block");
names.forEach(n => what.add(new Option(n, n)));
block.add(new Option("all blocks (mean)", -1));
data.surprise.forEach((_, i) => block.add(new Option("block " + (i + 1), i)));
const known = x => x !== null && !Number.isNaN(x);
const mean = rows => rows[0].map((_, t) => rows.reduce((s, r) => s + (r[t] ?? NaN), 0) / rows.length);
const values = name => block.value < 0 ? mean(data[name]) : data[name][block.value];
const colour = x => `hsl(${48 - 38 * x} 95% ${97 - 42 * x}%)`;
function paint() {
  const v = values(what.value), s = v.filter(known).sort((a, b) => a - b);
  const low = s[Math.floor(s.length * .02)] ?? 0, high = s[Math.floor((s.length - 1) * .98)] ?? 0;
  spans.forEach((e, i) => {
    e.style.background = !known(v[i]) ? "#bbb" : colour(Math.min(1, Math.max(0, (v[i] - low) / (high - low || 1)))); });
  document.getElementById("low").textContent = low.toPrecision(3);
  document.getElementById("high").textContent = high.toPrecision(3);
  document.getElementById("scale").style.background = `linear-gradient(90deg, ${colour(0)}, ${colour(1)})`;
}
what.onchange = block.onchange = paint;
document.getElementById("text").onmouseover = e => {
  const i = spans.indexOf(e.target);
  if (i >= 0) document.getElementById("tip").textContent = `token ${i + 1} ${JSON.stringify(e.target.textContent)}: ` +
    names.map(n => `${n} ${known(values(n)[i]) ? values(n)[i].toPrecision(3) : "not finite"}`).join("  ");
};
paint();
</script></body></html>
"""


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
    pieces = re.split("(" + "|".join(parts) + ")", PAGE)
    write_whole(page, "".join(parts.get(piece, piece) for piece in pieces))
    return [page, picture, numbers]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; that of a character of several tokens is the last one's, the others' is empty."""
    decoder = TextDecoder(tokenizer)
    texts = [decoder.add([int(token)]) for token in ids]
    return [*texts[:-1], texts[-1] + decoder.rest()] if texts else []
