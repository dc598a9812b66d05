"""Memory and speed of one model over a stream of millions of tokens.

    python -m benchmarks.streaming                            10M tokens, tiny MAC
    python -m benchmarks.streaming --tokens 1M --variant lmm --file book.txt.xz

The command records resident memory and tokens/s during the stream. It checks that memory at the end is at most 1.05
times that at 100K tokens, and that the speed of the last tenth is at least 0.95 times that of the first. Other work on
the machine affects this speed; so at the end the same tokens are read in turns from an empty memory and from the final
one. The results go to benchmarks/results/<date>_<device>_streaming.json and a picture beside it. The exit code is 1 if
a check fails.
"""

import argparse
import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import clear_transient, human, new_report, table, transient
from titanslab.experiments.report import say

WARM = 100_000  # tokens after which all buffers exist
MOST_MEMORY, LEAST_SPEED = 1.05, 0.95
STEPS = 200  # fewest points of a stream
BLOCK = 1 << 16  # tokens per random block


@dataclass(frozen=True)
class Point:
    """State after `tokens` tokens: resident bytes, bytes of the cache, and speed since the last point."""

    tokens: int
    resident: int
    cache: int
    tokens_per_second: float
    tokens_per_cpu_second: float


def count(text: str) -> int:
    """Parse a number of tokens such as `10M`, `100K` or `5000`."""
    factor = {"K": 10**3, "M": 10**6}.get(text[-1:].upper(), 1)
    try:
        number = int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a number of tokens such as 500K or 10M, got {text!r}")
    return number


def resident_bytes(device: torch.device) -> int:
    """Bytes that the process holds now; on a GPU, those of torch's allocator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_reserved(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    import resource

    return pages * resource.getpagesize()


def random_tokens(vocab_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yields blocks `[1, BLOCK]` of random tokens without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, vocab_size, (1, BLOCK), generator=generator)


def file_tokens(path: str, tokenizer: Any) -> Iterator[torch.Tensor]:
    """Yields the tokens of a text in blocks, again and again."""
    from titanslab.data import TextEncoder
    from titanslab.data.text import TextSource

    encoder = TextEncoder(tokenizer)
    for _ in itertools.count():
        for piece in TextSource(path).pieces():
            yield torch.from_numpy(encoder.chunk(piece.text, piece.start == 0)).long()[None]


def stream(
    model: Any, source: Iterator[torch.Tensor], tokens: int, every: int, piece_size: int | None
) -> Iterator[tuple[Point, Any]]:
    """Read `tokens` tokens of the source; yield a point and the cache about every `every` tokens."""
    device = model.device
    gc.collect()
    left, read, mark = tokens, 0, 0

    def limited() -> Iterator[torch.Tensor]:
        nonlocal left
        for block in source:
            if left <= 0:
                return
            block = block[:, :left]
            left -= block.shape[1]
            yield block

    wall, cpu = time.perf_counter(), time.process_time()
    for cache in model.read_pieces(limited(), piece_size=piece_size):
        read = cache.columns
        if read - mark >= every or read >= tokens:
            resident = resident_bytes(device)
            now, used = time.perf_counter(), time.process_time()
            pace, cpu_pace = (read - mark) / (now - wall), (read - mark) / max(used - cpu, 1e-9)
            yield Point(read, resident, cache.nbytes(), pace, cpu_pace), cache
            mark, wall, cpu = read, time.perf_counter(), time.process_time()


def verdict(points: list[Point]) -> dict[str, Any]:
    """Ratios end / start: memory (start = 100K tokens), and median speed of the last and the first tenth."""
    warm = next((p for p in points if p.tokens >= WARM), points[0])
    tenth = max(1, len(points) // 10)
    memory = points[-1].resident / warm.resident
    found: dict[str, Any] = {"memory_from": warm.tokens, "memory": memory, "memory_ok": memory <= MOST_MEMORY}
    for name in ("tokens_per_second", "tokens_per_cpu_second"):
        # the first point includes compilation and warm-up
        first = statistics.median(getattr(p, name) for p in points[1 : 1 + tenth] or points)
        last = statistics.median(getattr(p, name) for p in points[-tenth:])
        found[name] = {"first": first, "last": last, "ratio": last / first}
    found["speed_ok"] = found["tokens_per_second"]["ratio"] >= LEAST_SPEED
    return found


def fresh_against_old(model: Any, old: Any, vocab_size: int, turns: int = 7) -> dict[str, Any]:
    """Time to read the same tokens from an empty memory over that from `old`, measured in turns."""
    ids = torch.randint(0, vocab_size, (1, 4096), generator=torch.Generator().manual_seed(1))
    fresh = model.read(ids)  # like `old`, it has read its persistent tokens and made its buffers

    def seconds(cache: Any) -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        start = time.perf_counter()
        model.read(ids, cache)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - start

    pairs = [(seconds(fresh), seconds(old)) for _ in range(turns)]
    ratios = [a / b for a, b in pairs]
    return {"ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)], "seconds": pairs}


def draw(points: list[Point], path: Path, title: str) -> None:
    """Draw resident memory and speed over the stream into a PNG file, with both axes from zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    tokens = [p.tokens / 1e6 for p in points]
    axes[0].plot(tokens, [p.resident / 2**20 for p in points], label="process")
    axes[0].plot(tokens, [p.cache / 2**20 for p in points], label="cache")
    axes[1].plot(tokens, [p.tokens_per_second for p in points], label="per second")
    axes[1].plot(tokens, [p.tokens_per_cpu_second for p in points], label="per CPU second", linewidth=0.8)
    for axis, label in zip(axes, ("MiB", "tokens/s"), strict=True):
        axis.set_xlabel("million tokens read")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    draft = path.with_name(path.name + ".part")
    figure.savefig(draft, dpi=110, format="png")
    os.replace(draft, path)
    say(f"wrote {path}")


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model that the options name, and its tokenizer."""
    from titanslab import TitansConfig, TitansForCausalLM
    from titanslab.data import byte_tokenizer

    if arguments.model is not None:
        from titanslab.runs.loading import load_model, load_model_tokenizer

        return load_model(arguments.model), load_model_tokenizer(arguments.model)
    torch.manual_seed(arguments.seed)
    config = TitansConfig.preset(arguments.preset, variant=arguments.variant)
    return TitansForCausalLM(config).eval(), byte_tokenizer()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=count, default=10_000_000, help="length of the stream, such as 500K or 10M")
    parser.add_argument("--model", help="a run folder; default: an untrained model of --preset")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--variant", default="mac")
    parser.add_argument("--file", help="a text to read again and again; default: random tokens")
    parser.add_argument("--piece-size", type=int, help="tokens per call; default: that of the library")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="path of the JSON file")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    model, tokenizer = load(arguments)
    model = model.to(device, getattr(torch, arguments.dtype))
    source = (
        random_tokens(model.config.vocab_size, arguments.seed)
        if arguments.file is None
        else file_tokens(arguments.file, tokenizer)
    )
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(arguments).items()}
    settings |= {"parameters": sum(p.numel() for p in model.parameters()), "variant": model.config.variant}
    report = new_report("streaming", arguments.seed, device, settings, arguments.output)
    points: list[Point] = []
    every = max(1, min(arguments.tokens // STEPS, WARM // 2))
    last = None
    for point, cache in stream(model, source, arguments.tokens, every, arguments.piece_size):
        points.append(point)
        last = cache
        transient(f"{point.tokens:,} tokens, {point.tokens_per_second:,.0f} tokens/s, {human(point.resident)}")
        if len(points) % 10 == 0:
            report.content["results"] = [asdict(p) for p in points]
            report.write()
    clear_transient()
    report.content["results"] = [asdict(p) for p in points]
    found = report.content["verdict"] = verdict(points)
    found["in_turns"] = fresh_against_old(model, last, model.config.vocab_size)
    path = report.finish()
    draw(points, path.with_suffix(".png"), f"{points[-1].tokens:,} tokens through {model.config.variant}")
    speed = found["tokens_per_second"]
    rows = [
        ["memory", f"{found['memory']:.3f}", f"<= {MOST_MEMORY}", "ok" if found["memory_ok"] else "FAILED"],
        ["speed", f"{speed['ratio']:.3f}", f">= {LEAST_SPEED}", "ok" if found["speed_ok"] else "FAILED"],
        ["speed, CPU time", f"{found['tokens_per_cpu_second']['ratio']:.3f}", "", ""],
        ["speed, old and fresh memory in turns", f"{found['in_turns']['ratio']:.3f}", "", ""],
    ]
    print(table(["end over start", "measured", "to reach", ""], rows))
    say(f"{speed['first']:,.0f} tokens/s at the start, {speed['last']:,.0f} at the end, {human(points[-1].resident)}")
    return 0 if found["memory_ok"] and found["speed_ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
