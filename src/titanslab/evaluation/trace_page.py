"""A `MemoryTrace` as one HTML file that needs nothing else: the text, its tokens coloured."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def write_page(
    trace: MemoryTrace, tokens: Sequence[str], path: Path, *, title: str, subtitle: str, picture: Path
) -> None:
    """Write the page; `tokens` are the pieces of text that the trace's tokens stand for.

    Without scripts enabled the page still shows the text and the picture, which is put inside.
    """
    if len(tokens) != trace.per_token["surprise"].shape[1]:
        raise ValueError(
            f"tokens must hold one text per token, {trace.per_token['surprise'].shape[1]}, got {len(tokens)}"
        )
    data = trace.to_dict()
    numbers: dict[str, Any] = {name: data[name] for name in trace.per_token}
    png = base64.b64encode(picture.read_bytes()).decode("ascii")
    parts = {
        "SUBTITLE": html.escape(subtitle),
        "TITLE": html.escape(title),
        "PICTURE": f"data:image/png;base64,{png}",
        "DATA": json.dumps(numbers, allow_nan=False).replace("</", "<\\/"),
        "TOKENS": "".join(f"<span>{html.escape(token)}</span>" for token in tokens),
    }
    write_whole(path, "".join(_filled(PAGE, parts)))


def _filled(page: str, parts: dict[str, str]) -> list[str]:
    """The page with its words in capitals replaced, each once looked at: a text may spell them too."""
    import re

    pieces = re.split("(" + "|".join(parts) + ")", page)
    return [parts.get(piece, piece) for piece in pieces]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character of several tokens stands at its last, the others are empty."""
    texts: list[str] = []
    waiting: list[int] = []
    before: list[int] = []  # some tokenizers drop the space that a text begins with: decode after the token before
    for token in ids:
        waiting.append(int(token))
        text = _added(tokenizer, before, waiting)
        if text.endswith("\ufffd") and len(waiting) < 8:
            texts.append("")
            continue
        texts.append(text)
        before, waiting = waiting[-1:], []
    if waiting:
        texts[-1] = _added(tokenizer, before, waiting)
    return texts


def _added(tokenizer: Any, before: list[int], new: list[int]) -> str:
    """What `new` adds to the text of `before`."""
    whole, known = (tokenizer.decode(t, clean_up_tokenization_spaces=False) for t in (before + new, before))
    if before and whole.startswith(known):
        return whole[len(known) :]
    return tokenizer.decode(new, clean_up_tokenization_spaces=False)
