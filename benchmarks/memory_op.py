"""Speed and memory of the neural memory against its peers and against attention.

    python -m benchmarks.memory_op --row cpu64        one row of figures (cpu64, cpu16, cpu1, short, held, gpu16)
    python -m benchmarks.memory_op                    the sweep over T, chunk and depth, one axis at a time

All candidates of a setting are timed in turns within one run. The command writes
benchmarks/results/<date>_<device>_<topic>.json and a picture beside it.
"""

import argparse
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import floor
from benchmarks.measure import in_turns, one_line, ratio, spread
from benchmarks.output import human, new_report, quiet_progress, table
from benchmarks.peers import CANDIDATES, OURS, Missing, Setting, Work, build, candidate, plain, too_much
from benchmarks.probe import in_fresh_process
from benchmarks.rates import rate_probes
from titanslab.experiments.report import Report, picture, say

ATTENTION = ("sdpa-full", "sdpa-window")
FLA = ("fla-gated-delta-rule", "fla-ttt-linear")

# The rows of figures: settings, candidates, the peer of the ratio, and the target.
ROWS: dict[str, dict[str, Any]] = {
    "cpu64": {
        "settings": [Setting(4096, 64)],
        "names": ["titanslab", "titans-pytorch", "titanslab-op"],
        "peer": "titans-pytorch",
        "target": "6x tokens/s, 0.5x peak memory",
    },
    "cpu16": {
        "settings": [Setting(2048, 16)],
        "names": ["titanslab", "titans-pytorch", "titanslab-op"],
        "peer": "titans-pytorch",
        "target": "15x tokens/s",
    },
    "cpu1": {
        "settings": [Setting(256, 1)],
        "names": ["titanslab", "titans-unofficial", "titanslab-op"],
        "peer": "titans-unofficial",
        "target": "20x tokens/s",
    },
    "short": {
        "settings": [
            Setting(tokens, chunk, depth=depth, dim=64, expansion=2, batch=batch)
            for depth, chunk in ((2, 4), (1, 1))
            for tokens, batch in ((12, 224), (42, 224), (96, 64))
        ],
        "names": ["titanslab", "sdpa-full"],
        "peer": "sdpa-full",
        "target": "0.4x tokens/s at depth 2 and chunk 4, 0.67x at depth 1 and chunk 1",
    },
    "held": {
        "settings": [Setting(2048, 16), Setting(32768, 16)],
        "names": ["titanslab-op", "titanslab", "sdpa-full", "sdpa-window"],
        "peer": None,
        "target": "held bytes per token flat within 10 %; within 1.5x of attention",
        "untimed": True,
    },
    "gpu16": {
        "settings": [Setting(4096, 16, dim=1024, heads=16, batch=8, dtype="bfloat16", device="cuda", window=2048)],
        "names": [*OURS, *FLA, *ATTENTION, "titans-pytorch"],
        "peer": "titans-pytorch",
        "target": "30 % of the measured matmul rate",
    },
}


def sweep(arguments: argparse.Namespace, base: Setting) -> list[Setting]:
    """The settings of the sweep: one axis at a time around the base, or the whole grid."""
    if arguments.grid:
        return [
            replace(base, tokens=t, chunk=c, depth=d)
            for d in arguments.depth
            for c in arguments.chunk
            for t in arguments.tokens
        ]
    settings = [replace(base, tokens=t) for t in arguments.tokens]
    settings += [replace(base, chunk=c) for c in arguments.chunk]
    settings += [replace(base, depth=d) for d in arguments.depth]
    return list(dict.fromkeys(settings))


def product_shapes(s: Setting) -> list[tuple[int, int, int, int]]:
    """Shapes of the memory's batched products: a chunk times a layer, and the outer products of a chunk."""
    rows, wide = s.batch * s.heads, max(max(w) for w in floor.widths(s.head_dim, s.depth, s.expansion))
    shapes = [(rows, s.chunk, s.head_dim, wide), (rows, s.head_dim, s.chunk, wide)]
    # the reads of 16 chunks are one product
    return [*shapes, (16 * rows, s.chunk, s.head_dim, wide)]


def measure(
    s: Setting, names: list[str], report: Report, arguments: argparse.Namespace, timed: bool = True
) -> dict[str, Any]:
    """Measure one setting: candidates and machine rates in turns, then each candidate's memory in a new process.

    The result is in the report from the start, which is written again as figures come.
    """
    device = torch.device(s.device)
    works: dict[str, Work] = {}
    left_out: dict[str, str] = {}
    for name in names:
        reason = too_much(name, s, arguments.memory_limit << 30, arguments.slow_tokens)
        if reason is not None:
            left_out[name] = reason
            continue
        try:
            works[name] = build(name, s)
        except Missing as error:
            left_out[name] = str(error)
        except (RuntimeError, ValueError, ImportError, AssertionError) as error:
            left_out[name] = one_line(error)
    known = {m["name"] for m in report.content["missing"]}
    for name, reason in left_out.items():
        if name not in known:
            report.missing(name, f"{s.label}: {reason}")
    result: dict[str, Any] = {"setting": asdict(s), "left_out": left_out, "candidates": {}, "ratios": {}}
    for name, work in works.items():
        result["candidates"][name] = {"note": work.note, "fast_weights": work.fast_weights}
    report.add(result)
    if timed:
        _time(s, works, result, report, arguments, device)
    if not arguments.no_memory:
        for name, work in works.items():
            say(f"  memory of {name} in a new process")
            result["candidates"][name]["memory"] = in_fresh_process(
                name, work.setting, arguments.threads, arguments.probe_timeout
            )
            report.write()
    return result


def _time(
    s: Setting,
    works: dict[str, Work],
    result: dict[str, Any],
    report: Report,
    arguments: argparse.Namespace,
    device: torch.device,
) -> None:
    probes = rate_probes(device, getattr(torch, s.dtype), product_shapes(s))
    calls = {f"{name} step": work.step for name, work in works.items()}
    if not arguments.no_forward:
        calls |= {f"{name} forward": work.forward for name, work in works.items()}

    def keep(seconds: dict[str, list[float]], failed: dict[str, str]) -> None:
        if all(name in seconds for name in probes):
            _enter(s, works, result, probes, seconds, failed)
            report.write()

    with quiet_progress() as show:
        _, failed = in_turns(
            {**probes, **calls},
            device,
            arguments.repeats,
            arguments.warmup,
            lambda text: show(f"{s.label}  {text}"),
            keep=keep,
        )
    for key, reason in failed.items():
        say(f"FAILED {key}: {reason}")


def _enter(
    s: Setting,
    works: dict[str, Work],
    result: dict[str, Any],
    probes: dict[str, Any],
    seconds: dict[str, list[float]],
    failed: dict[str, str],
) -> None:
    """Enter the figures of the turns so far, and their ratios, into `result`."""
    rates = {name: probe.work / spread(seconds[name])["median"] for name, probe in probes.items()}
    result["rates"] = {
        "matmul_flops_per_second": {n: r for n, r in rates.items() if n != "copy"},
        "copy_bytes_per_second": rates["copy"],
        "raw": {name: {"work": probe.work, **spread(seconds[name])} for name, probe in probes.items()},
    }
    best = max(result["rates"]["matmul_flops_per_second"].values())
    tokens = s.batch * s.tokens
    for name, work in works.items():
        entry = result["candidates"][name]
        for part, passes in (("step", floor.BACKWARD), ("forward", 1)):
            key = f"{name} {part}"
            if key in failed:
                entry[part] = {"error": failed[key]}
            elif key in seconds:
                entry[part] = spread(seconds[key])
                entry[part]["tokens_per_second"] = tokens / entry[part]["median"]
                if work.flops is not None and work.moved is not None:
                    entry[part]["floor"] = floor.fraction(
                        passes * work.flops, passes * work.moved, entry[part]["median"], best, rates["copy"]
                    )
                    entry[part]["floor"]["state_traffic_bytes"] = passes * floor.state_traffic(
                        s.tokens, s.chunk, s.heads, s.head_dim, s.depth, s.expansion, s.batch
                    )
    for mine, other in _compared(list(works)):
        if f"{mine} step" in seconds and f"{other} step" in seconds:
            result["ratios"][f"{mine} / {other}"] = ratio(seconds[f"{mine} step"], seconds[f"{other} step"])


def _compared(names: list[str]) -> list[tuple[str, str]]:
    """Pairs whose ratio is reported: each of ours to each peer, and to an earlier one that differs in its backend."""
    pairs = []
    for i, mine in enumerate(names):
        others = [n for j, n in enumerate(names) if plain(n) not in OURS or (plain(n) == plain(mine) and j < i)]
        pairs += [(mine, other) for other in others if plain(mine) in OURS]
    return pairs


def show(result: dict[str, Any]) -> str:
    """The results of one setting as a table."""
    setting = Setting(**result["setting"])
    lines = []
    for name, entry in result["candidates"].items():
        step, forward, memory = entry.get("step", {}), entry.get("forward", {}), entry.get("memory", {})
        peak = memory.get("forward_backward_peak", {}).get("bytes")
        reached = step.get("floor", {}).get("fraction_reached")
        low, high = step.get("quartiles", (0.0, 0.0))
        spread_of = f"±{50 * (high - low) / step['median']:.0f}%" if "median" in step else "-"
        speed = step.get("error", "-")[:24]
        if "tokens_per_second" in step:
            speed = f"{step['tokens_per_second']:,.0f}"
        lines.append(
            [
                name,
                speed,
                spread_of,
                f"{forward['tokens_per_second']:,.0f}" if "tokens_per_second" in forward else "-",
                human(peak) if "error" not in memory else memory["error"][:24],
                human(memory.get("forward_backward_peak_default_malloc", {}).get("bytes")),
                human(memory.get("held_bytes_per_token")),
                f"{100 * reached:.0f}%" if reached else "-",
            ]
        )
    header = ["candidate", "step tok/s", "spread", "forward tok/s", "peak", "default malloc", "held/token", "floor"]
    shape = f"dim {setting.dim}, {setting.heads} heads, {setting.dtype} on {setting.device}"
    text = [f"\n{setting.label}, {shape}"]
    text.append(table(header, lines))
    for name, r in result["ratios"].items():
        low, high = r["range"]
        text.append(f"{name}: {r['median']:.2f}x  ({low:.2f} .. {high:.2f} over the turns)")
    if "rates" in result:
        rates = result["rates"]["matmul_flops_per_second"]
        text.append(
            "measured: "
            + ", ".join(f"{n} {r / 1e9:,.0f} GFLOP/s" for n, r in rates.items())
            + f", copy {result['rates']['copy_bytes_per_second'] / 1e9:.1f} GB/s"
        )
    return "\n".join(text)


def verdict(results: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """The figures of a row: speed at each setting and memory against the peer, or held memory over length."""
    out: dict[str, Any] = {"target": row["target"]}
    first = results[0]["candidates"]
    if row["peer"] is not None:
        for mine in OURS:
            key = f"{mine} / {row['peer']}"
            for result in results:
                where = f", {Setting(**result['setting']).label}" if len(results) > 1 else ""
                if key in result["ratios"]:
                    out[f"speed {key}{where}"] = result["ratios"][key]["median"]
            for kind in ("", "_default_malloc"):
                sizes = [
                    first.get(n, {}).get("memory", {}).get(f"forward_backward_peak{kind}", {}).get("bytes")
                    for n in (mine, row["peer"])
                ]
                if all(sizes):
                    out[f"peak memory{kind.replace('_', ' ')} {key}"] = sizes[0] / sizes[1]
        for mine in OURS:
            reached = first.get(mine, {}).get("step", {}).get("floor", {}).get("fraction_reached")
            if reached:
                out[f"fraction of floor {mine}"] = reached
    if len(results) == 2:
        for name in first:
            held = [r["candidates"].get(name, {}).get("memory", {}).get("held_bytes_per_token") for r in results]
            if all(held):
                out[f"held bytes/token {name}, long / short"] = held[1] / held[0]
        long = results[1]["candidates"]
        pair = ("titanslab", "sdpa-full")
        held = [long.get(n, {}).get("memory", {}).get("held_bytes_per_token") for n in pair]
        if all(held):
            out["held bytes/token titanslab / sdpa-full"] = held[0] / held[1]
    return out


def curves(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Panels of the picture: speed, peak memory and held memory, over each axis that varies."""
    if len(results) == 1:
        groups = [("tokens", results)]
    else:
        groups = []
        for axis in ("tokens", "chunk", "depth"):
            rest = lambda r, a=axis: tuple(v for k, v in r["setting"].items() if k != a)  # noqa: E731
            by_rest: dict[tuple, list] = {}
            for r in results:
                by_rest.setdefault(rest(r), []).append(r)
            largest = max(by_rest.values(), key=len)
            if len(largest) > 1:
                groups.append((axis, largest))
    panels = []
    for axis, group in groups:
        fixed = [f"{k} {group[0]['setting'][k]}" for k in ("tokens", "chunk", "depth") if k != axis]
        speed: dict[str, list] = {}
        peak: dict[str, list] = {}
        held: dict[str, list] = {}
        for r in group:
            tokens = r["setting"]["tokens"] * r["setting"]["batch"]
            for name, entry in r["candidates"].items():
                x, step, memory = r["setting"][axis], entry.get("step", {}), entry.get("memory", {})
                if "median" in step:
                    low, high = (tokens / t for t in reversed(step["quartiles"]))
                    speed.setdefault(name, []).append((x, tokens / step["median"], low, high))
                for into, value in (
                    (peak, memory.get("forward_backward_peak", {}).get("bytes")),
                    (held, memory.get("held_bytes_per_token")),
                ):
                    if value:
                        scaled = value / ((1 << 20) if into is peak else 1024)
                        into.setdefault(name, []).append((x, scaled, scaled, scaled))
        for title, unit, data in (
            ("forward + backward", "tokens/s", speed),
            ("peak memory, forward + backward", "MiB", peak),
            ("held for backward", "KiB per token", held),
        ):
            if data:
                panels.append({"title": title, "x": f"{axis} ({', '.join(fixed)})", "y": unit, "curves": data})
    return panels


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--row", choices=sorted(ROWS), help="one row of figures in place of the sweep")
    p.add_argument("--candidates", nargs="+", type=candidate, help="default: all that can run")
    p.add_argument("--tokens", nargs="+", type=int, default=[512, 2048, 8192, 32768])
    p.add_argument("--chunk", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    p.add_argument("--depth", nargs="+", type=int, default=[1, 2, 3, 4])
    p.add_argument("--grid", action="store_true", help="the whole grid in place of one axis at a time")
    p.add_argument("--base-tokens", type=int, default=2048, help="T of the settings that vary chunk or depth")
    p.add_argument("--base-chunk", type=int, default=16)
    p.add_argument("--dim", type=int, default=256)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--batch", type=int, help="number of sequences; default: 1, or that of the row")
    p.add_argument("--window", type=int, default=512, help="window of the windowed attention")
    p.add_argument("--backend", default="auto", help="backend of our memory")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32, on a GPU bfloat16")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's default")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--flush-denormals", action="store_true", help="set the flush-to-zero flag for all candidates")
    p.add_argument("--no-memory", action="store_true", help="measure time alone")
    p.add_argument("--no-forward", action="store_true", help="time forward + backward alone")
    p.add_argument("--memory-limit", type=int, default=12, help="most GiB that a candidate is expected to need")
    p.add_argument("--slow-tokens", type=int, default=512, help="longest T for a Python loop over tokens")
    p.add_argument("--probe-timeout", type=float, default=600.0, help="seconds for one memory measurement")
    p.add_argument("--out", type=Path, help="JSON file (default: a new one in benchmarks/results)")
    return p


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = parser().parse_args(argv)
    warnings.simplefilter("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.flush_denormals:
        torch.set_flush_denormal(True)
    row = ROWS[arguments.row] if arguments.row else None
    if row is not None:
        settings = [replace(s, seed=arguments.seed, backend=arguments.backend) for s in row["settings"]]
        if arguments.batch:
            settings = [replace(s, batch=arguments.batch) for s in settings]
        if settings[0].device == "cpu" and arguments.device != "cpu":
            say("this row is for a CPU; it runs on the CPU")
        names = arguments.candidates or row["names"]
    else:
        dtype = arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16")
        base = Setting(
            arguments.base_tokens,
            arguments.base_chunk,
            dim=arguments.dim,
            heads=arguments.heads,
            batch=arguments.batch or 1,
            window=arguments.window,
            dtype=dtype,
            device=arguments.device,
            seed=arguments.seed,
            backend=arguments.backend,
        )
        settings = sweep(arguments, base)
        names = arguments.candidates or [n for n in CANDIDATES if n != "titans-pytorch-per-token"]
    device = torch.device(settings[0].device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this row needs a GPU, and torch finds none; rows for a CPU: cpu64, cpu16, cpu1, short, held")
    topic = f"memory_op_{arguments.row}" if arguments.row else "memory_op"
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    report = new_report(topic, arguments.seed, device, options, arguments.out)
    for number, setting in enumerate(settings, 1):
        say(f"[{number}/{len(settings)}] {setting.label}")
        result = measure(setting, names, report, arguments, timed=not (row or {}).get("untimed", False))
        print(show(result), flush=True)
    results = report.content["results"]
    if row is not None:
        report.content["row"] = {"name": arguments.row, **verdict(results, row)}
        print(f"\nrow {arguments.row}, to reach: {row['target']}")
        for name, value in report.content["row"].items():
            if isinstance(value, float):
                print(f"  {name}: {value:.3f}")
    path = report.finish()
    machine = report.content["machine"]
    panels = curves(results)
    if panels:
        place = machine.get("gpu") or f"{machine['cpu']}, {machine['torch_threads']} threads"
        picture(path, panels, f"{topic}: {place}")
    return report.content


if __name__ == "__main__":
    main()
