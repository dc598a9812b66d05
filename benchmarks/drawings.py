"""Write docs/pictures/models.svg, the drawing of LMM, MAL, MAG and MAC (docs/paper.md has their equations).

    python -m benchmarks.drawings

The picture is plain SVG with a white ground of its own, so that it can be read on a dark page too.
"""

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1010, 540
INK, GREY = "#222222", "#777777"
MEMORY, MEMORY_FILL = "#C24E00", "#FDEBDD"
ATTENTION, ATTENTION_FILL = "#0065A3", "#E1F0FA"
GATE_FILL, PANEL_FILL = "#EFEFEF", "#FAFAFA"
TOKEN, PERSISTENT, RECALLED = "#8A8A8A", "#B0568B", "#E8853A"
SIDE, GAP = 15, 4  # of the square of a token
OUTPUT, TOKENS, CAPTION = 92, 410, 460  # heights of the rows that all panels share


class Drawing:
    """The parts of an SVG picture, drawn in their order."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str, radius: float = 8) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"/>'
        )

    def text(self, x: float, y: float, text: str, size: float = 14, colour: str = INK, weight: str = "normal") -> None:
        """One line of text, centred at x."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" font-weight="{weight}" '
            f'text-anchor="middle">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[float, float], colour: str = INK, head: bool = True) -> None:
        """A line through the points, with a head at the last one."""
        path = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        marker = f' marker-end="url(#{ARROWS[colour]})"' if head else ""
        self.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{marker}/>')

    def squares(self, x: float, y: float, colours: Sequence[str]) -> float:
        """A row of squares from x on; returns the middle of the row."""
        for i, colour in enumerate(colours):
            self.box(x + i * (SIDE + GAP), y, SIDE, SIDE, colour, "#FFFFFF", 3)
        return x + row(len(colours)) / 2

    def memory(self, x: float, y: float, width: float, height: float) -> None:
        """The box of a memory, with the loop that stands for its learning."""
        middle, loop = x + width / 2, y + height / 2 - 28
        self.box(x, y, width, height, MEMORY_FILL, MEMORY)
        self.parts.append(
            f'<path d="M{middle + 8.5:g} {loop + 4:g} A9 9 0 1 1 {middle + 8.5:g} {loop - 4:g}" fill="none" '
            f'stroke="{MEMORY}" stroke-width="1.8" marker-end="url(#{ARROWS[MEMORY]})"/>'
        )
        self.text(middle, loop + 29, "memory", 15, MEMORY, "bold")
        self.text(middle, loop + 46, "keeps learning", 13, MEMORY)
        self.text(middle, loop + 61, "while it reads", 13, MEMORY)

    def attention(self, x: float, y: float, width: float, height: float, reach: str) -> None:
        self.box(x, y, width, height, ATTENTION_FILL, ATTENTION)
        self.text(x + width / 2, y + height / 2 - 2, "attention", 15, ATTENTION, "bold")
        self.text(x + width / 2, y + height / 2 + 15, reach, 13, ATTENTION)

    def bracket(self, x: float, y: float, width: float, text: str) -> None:
        """A bracket below a row of squares, with its name."""
        self.arrow((x, y), (x, y + 6), (x + width, y + 6), (x + width, y), colour=ATTENTION, head=False)
        self.text(x + width / 2, y + 20, text, 13, ATTENTION)

    def panel(self, x: float, width: float, name: str, title: str, caption: Sequence[str]) -> float:
        """The ground, names and output row of one model; returns its middle."""
        middle = x + width / 2
        self.box(x, 12, width, HEIGHT - 62, PANEL_FILL, "#DDDDDD", 10)
        self.text(middle, 40, name, 20, INK, "bold")
        self.text(middle, 59, title, 13, GREY)
        for i, line in enumerate(caption):
            self.text(middle, CAPTION + 17 * i, line, 13.5, INK)
        return middle

    def svg(self) -> str:
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6.5" markerHeight="6.5" '
            f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
            for colour, name in ARROWS.items()
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" role="img">\n'
            "<title>The four models: LMM, MAL, MAG and MAC</title>\n"
            f"<defs>{heads}</defs>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )


ARROWS = {INK: "ink", MEMORY: "orange", ATTENTION: "blue"}


def row(count: int) -> float:
    """Width of a row of so many squares."""
    return count * (SIDE + GAP) - GAP


def lmm(d: Drawing, x: float, width: float) -> None:
    middle = d.panel(x, width, "LMM", "the memory alone", ["The memory takes", "attention's place."])
    d.squares(middle - row(5) / 2, TOKENS - 8, [TOKEN] * 5)
    d.arrow((middle, TOKENS - 12), (middle, 302))
    d.memory(middle - 60, 204, 120, 96)
    d.arrow((middle, 204), (middle, OUTPUT + SIDE))
    d.squares(middle - row(5) / 2, OUTPUT - 8, [TOKEN] * 5)


def mal(d: Drawing, x: float, width: float) -> None:
    middle = d.panel(x, width, "MAL", "memory as a layer", ["Attention reads the output", "of the memory."])
    d.squares(middle - row(5) / 2, TOKENS - 8, [TOKEN] * 5)
    d.arrow((middle, TOKENS - 12), (middle, 384))
    d.memory(middle - 60, 286, 120, 96)
    left = middle - row(8) / 2 - 3
    d.arrow((middle - 20, 286), (middle - 20, 260))
    d.squares(left, 240, [PERSISTENT] * 2)
    d.squares(left + 2 * (SIDE + GAP) + 6, 240, [RECALLED] * 6)
    d.bracket(left + 5 * (SIDE + GAP) + 6, 258, row(3), "window")
    d.arrow((middle, 236), (middle, 210))
    d.attention(middle - 65, 156, 130, 52, "in a window")
    d.arrow((middle, 156), (middle, OUTPUT + SIDE))
    d.squares(middle - row(5) / 2, OUTPUT - 8, [TOKEN] * 5)


def mag(d: Drawing, x: float, width: float) -> None:
    middle = d.panel(x, width, "MAG", "memory as a gate", ["Both read the tokens,", "and a gate mixes them."])
    left, right = x + 64, x + width - 64
    first = middle - row(6) / 2
    d.squares(first, TOKENS - 8, [TOKEN] * 6)
    d.bracket(first + 3 * (SIDE + GAP), TOKENS + 10, row(3), "window")
    d.arrow((middle, TOKENS - 10), (middle, 366), (left, 366), (left, 298))
    d.arrow((middle, 366), (right, 366), (right, 302))
    d.squares(left - 50, 322, [PERSISTENT] * 2)
    d.arrow((left - 33.5, 318), (left - 33.5, 298))
    d.attention(left - 56, 222, 112, 74, "in a window")
    d.memory(right - 56, 204, 112, 96)
    d.arrow((left, 222), (left, 157), (middle - 34, 157))
    d.arrow((right, 204), (right, 157), (middle + 34, 157))
    d.box(middle - 32, 142, 64, 30, GATE_FILL, INK)
    d.text(middle, 162, "gate", 14)
    d.arrow((middle, 142), (middle, OUTPUT + SIDE))
    d.squares(middle - row(6) / 2, OUTPUT - 8, [TOKEN] * 6)


def mac(d: Drawing, x: float, width: float) -> None:
    lines = ["Attention reads recalled and new tokens;", "its output is written into the memory."]
    d.panel(x, width, "MAC", "memory as context, segment by segment", lines)
    left, top, bottom = x + 12, 196, 372  # of the memory
    middle, side = left + 56, left + 112
    d.memory(left, top, 112, bottom - top)
    start = side + 32  # of the row that attention reads
    persistent = d.squares(start, 316, [PERSISTENT] * 2)
    recalled = d.squares(start + 2 * (SIDE + GAP) + 6, 316, [RECALLED] * 4)
    first = start + 6 * (SIDE + GAP) + 12  # of the segment
    segment = d.squares(first, 316, [TOKEN] * 4)
    before = first - 4 * (SIDE + GAP) - 6
    d.squares(before, TOKENS - 8, ["#DADADA"] * 4)
    d.squares(first, TOKENS - 8, [TOKEN] * 4)
    d.text(before - 16, TOKENS + 4, "...", 15, GREY)
    d.text(segment, TOKENS + 24, "segment", 13, GREY)
    # 1: the memory recalls for the segment
    d.arrow((segment, TOKENS - 10), (segment, 335))
    d.arrow((segment, 386), (middle, 386), (middle, bottom + 2), colour=MEMORY)
    d.text(side + 22, 380, "1 read", 13.5, MEMORY)
    d.arrow((side, 354), (recalled, 354), (recalled, 335), colour=MEMORY)
    # attention over all three
    for place in (persistent, recalled, segment):
        d.arrow((place, 312), (place, 294))
    d.attention(start - 8, 238, first + row(4) - start + 16, 54, "full, inside the segment")
    # 2: write, 3: read again
    d.arrow((segment, 238), (segment, 170))
    d.arrow((segment, 216), (side + 2, 216), colour=MEMORY)
    d.text(side + 62, 210, "2 write", 13.5, MEMORY)
    d.arrow((middle, top), (middle, 153), (segment - 36, 153), colour=MEMORY)
    d.text(side + 62, 147, "3 read", 13.5, MEMORY)
    d.box(segment - 34, 138, 68, 30, GATE_FILL, INK)
    d.text(segment, 158, "gate", 14)
    d.arrow((segment, 138), (segment, OUTPUT + SIDE))
    d.squares(first, OUTPUT - 8, [TOKEN] * 4)


def legend(d: Drawing, y: float) -> None:
    x = 40.0
    for colours, text, width in (
        ([TOKEN], "token", 60),
        ([RECALLED], "output of the memory", 165),
        ([PERSISTENT], "persistent token: learned, visible to all tokens", 350),
    ):
        d.squares(x, y - 12, colours)
        d.parts.append(f'<text x="{x + 22:g}" y="{y:g}" font-size="13" fill="{INK}">{escape(text)}</text>')
        x += width + 30
    d.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="13" fill="{GREY}">One block each, read upwards.</text>')


def models() -> str:
    """The picture as SVG text."""
    d = Drawing()
    d.box(1, 1, WIDTH - 2, HEIGHT - 2, "#FFFFFF", "#DDDDDD", 14)
    x = 14.0
    for draw, width in ((lmm, 150), (mal, 188), (mag, 244), (mac, 370)):
        draw(d, x, width)
        x += width + 10
    legend(d, HEIGHT - 20)
    return d.svg()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of pictures/")
    folder = parser.parse_args(arguments).docs / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.svg").write_text(models(), encoding="utf-8")


if __name__ == "__main__":
    main()
