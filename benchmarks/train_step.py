"""Tokens per second of whole training steps (loss, backward, AdamW) of models with equal numbers of parameters.

    python -m benchmarks.train_step --row mac-vs-titans-pytorch    MAC against titans-pytorch's, T = 512
    python -m benchmarks.train_step --row cpu                      tiny: T = 4K and 32K, Titans against attention
    python -m benchmarks.train_step --row gpu                      170m and 340m: 4K, 16K, 32K, bf16
    python -m benchmarks.train_step                                CPU: tiny and 10m, 512 .. 8K

All candidates of a setting are timed in turns within one run. The command writes
benchmarks/results/<date>_<device>_<topic>.json and a picture beside it.
"""

import argparse
import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import floor
from benchmarks.measure import ERRORS, in_turns, one_line, ratio, spread
from benchmarks.models import CANDIDATES, SIZES, TITANS, TRUNK, ModelSetting, Training, build
from benchmarks.output import human, new_report, quiet_progress, table
from benchmarks.peers import Missing
from benchmarks.probe import in_fresh_process
from benchmarks.rates import rate_probes
from titanslab.experiments.report import Report, picture, say

MAC_ROW = ("mac", "titans-pytorch-mac", "titans-pytorch-mac-128")
GPU_TOKENS = 32768  # tokens per step at any length

ROWS: dict[str, dict[str, Any]] = {
    "mac-vs-titans-pytorch": {
        "settings": [ModelSetting("tiny", 512), ModelSetting("tiny", 512, batch=8), ModelSetting("dim128", 512)],
        "names": list(MAC_ROW),
        "against": ["titans-pytorch-mac", "titans-pytorch-mac-128"],
        "target": "4x tokens/s of titans-pytorch-mac",
    },
    "cpu": {
        "settings": [ModelSetting("tiny", 4096), ModelSetting("tiny", 32768)],
        "names": [*TRUNK, "llama"],
        "against": ["attention-full"],
        "target": "best Titans variant against attention-full: 0.7x at 4K, above 1x at 32K",
    },
    "gpu": {
        "settings": [
            ModelSetting(size, t, GPU_TOKENS // t, dtype="bfloat16", device="cuda", fused_loss=True)
            for size in ("340m", "170m")
            for t in (4096, 16384, 32768)
        ],
        "names": [*TRUNK, "llama", "gated-deltanet", "mamba2"],
        "against": ["attention-full", "llama"],
        "target": "best Titans variant (340m) against attention-full: 0.85x at 4K, 1.5x at 16K, 2.5x at 32K",
    },
}


def measure(
    s: ModelSetting, names: list[str], against: list[str], report: Report, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure one setting: candidates and machine rates in turns, then each candidate's memory in a new process.

    The result is in the report from the start, which is written again as figures come.
    """
    device = torch.device(s.device)
    models: dict[str, Training] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            models[name] = build(name, s)
        except Missing as error:
            left_out[name] = str(error)
        except ERRORS as error:
            left_out[name] = one_line(error)
    known = {m["name"] for m in report.content["missing"]}
    for name, reason in left_out.items():
        if name not in known:
            report.missing(name, f"{s.label}: {reason}")
    result: dict[str, Any] = {"setting": asdict(s), "left_out": left_out, "candidates": {}, "ratios": {}}
    for name, model in models.items():
        result["candidates"][name] = {"note": model.note, "parameters": model.parameters}
    report.add(result)
    parked = device.type == "cuda"
    for model in models.values() if parked else ():
        model.move("cpu")

    @contextlib.contextmanager
    def on_device(name: str) -> Iterator[None]:
        """Move a candidate to the GPU for its turn and back; the moves are not timed."""
        model = models.get(name) if parked else None
        try:
            if model is not None:
                model.move(s.device)
            yield
        finally:
            if model is not None:
                model.optimizer.zero_grad(set_to_none=True)
                model.move("cpu")

    probes = rate_probes(device, getattr(torch, s.dtype), [])
    calls = {name: model.step for name, model in models.items()}

    def keep(seconds: dict[str, list[float]], failed: dict[str, str]) -> None:
        if all(name in seconds for name in probes):
            _enter(s, models, result, probes, seconds, failed, against)
            report.write()

    with quiet_progress() as show_progress:
        _, failed = in_turns(
            {**probes, **calls},
            device,
            arguments.repeats,
            arguments.warmup,
            lambda text: show_progress(f"{s.label}  {text}"),
            around=on_device,
            keep=keep,
        )
    for name, reason in failed.items():
        say(f"FAILED {name}: {reason}")
    models.clear()
    calls.clear()
    if not arguments.no_memory:
        for name in [n for n in result["candidates"] if n not in failed]:
            say(f"  memory of {name} in a new process")
            result["candidates"][name]["memory"] = in_fresh_process(name, s, arguments.threads, arguments.probe_timeout)
            report.write()
    return result


def _enter(
    s: ModelSetting,
    models: dict[str, Training],
    result: dict[str, Any],
    probes: dict[str, Any],
    seconds: dict[str, list[float]],
    failed: dict[str, str],
    against: list[str],
) -> None:
    """Enter the figures of the turns so far, and their ratios, into `result`."""
    rates = {n: probe.work / spread(seconds[n])["median"] for n, probe in probes.items()}
    result["rates"] = {
        "matmul_flops_per_second": {n: r for n, r in rates.items() if n != "copy"},
        "copy_bytes_per_second": rates["copy"],
    }
    rate = max(result["rates"]["matmul_flops_per_second"].values())
    for name, model in models.items():
        entry = result["candidates"][name]
        if name in failed:
            entry["step"] = {"error": failed[name]}
        if name not in seconds:
            continue
        entry["step"] = spread(seconds[name])
        entry["step"]["tokens_per_second"] = s.batch * s.tokens / entry["step"]["median"]
        entry["losses_finite"] = all(bool(loss.isfinite()) for loss in model.losses)
        if model.flops is not None:
            # reads of the weights in forward and backward, reads and writes of the optimizer with two moments
            moved = 4 * model.parameters * 9
            entry["step"]["floor"] = floor.fraction(
                floor.BACKWARD * model.flops, moved, entry["step"]["median"], rate, rates["copy"]
            )
    for mine in (n for n in TITANS if n in seconds):
        for other in against:
            if other in seconds:
                result["ratios"][f"{mine} / {other}"] = ratio(seconds[mine], seconds[other])
    for other in against:
        rows = {n: result["ratios"][f"{n} / {other}"] for n in TITANS if f"{n} / {other}" in result["ratios"]}
        if rows:
            best = max(rows, key=lambda n: rows[n]["median"])
            result["ratios"][f"best Titans / {other}"] = {**rows[best], "best": best}


def show(result: dict[str, Any]) -> str:
    """The results of one setting as a table."""
    s = ModelSetting(**result["setting"])
    lines = []
    for name, entry in result["candidates"].items():
        step, memory = entry.get("step", {}), entry.get("memory", {})
        speed, spread_of = step.get("error", "-")[:24], "-"
        if "median" in step:
            low, high = step["quartiles"]
            speed, spread_of = f"{step['tokens_per_second']:,.0f}", f"±{50 * (high - low) / step['median']:.0f}%"
        reached = step.get("floor", {}).get("fraction_reached")
        peak = memory.get("forward_backward_peak", {}).get("bytes")
        lines.append(
            [
                name,
                f"{entry['parameters'] / 1e6:.2f}M",
                speed,
                spread_of,
                f"{100 * reached:.0f}%" if reached else "-",
                memory["error"][:24] if "error" in memory else human(peak),
            ]
        )
    text = [f"\n{s.label}, {s.dtype} on {s.device}{', compiled' if s.compiled else ''}"]
    text.append(table(["candidate", "parameters", "step tok/s", "spread", "of floor", "peak"], lines))
    for name, r in result["ratios"].items():
        low, high = r["range"]
        who = f" ({r['best']})" if "best" in r else ""
        text.append(f"{name}{who}: {r['median']:.2f}x  ({low:.2f} .. {high:.2f} over the turns)")
    rates = result["rates"]["matmul_flops_per_second"]
    text.append("measured: " + ", ".join(f"{n} {r / 1e9:,.0f} GFLOP/s" for n, r in rates.items()))
    return "\n".join(text)


def curves(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Panels of the picture: tokens/s over T, one per size; on a CPU, one per size and batch."""
    panels: dict[str, dict[str, Any]] = {}
    for r in results:
        s = r["setting"]
        title = s["size"] if s["device"] == "cuda" else f"{s['size']}, batch {s['batch']}"
        panel = panels.setdefault(
            title, {"title": f"training step, {title}", "x": "tokens", "y": "tokens/s", "curves": {}}
        )
        for name, entry in r["candidates"].items():
            step = entry.get("step", {})
            if "median" in step:
                count = s["tokens"] * s["batch"]
                low, high = (count / t for t in reversed(step["quartiles"]))
                panel["curves"].setdefault(name, []).append((s["tokens"], count / step["median"], low, high))
    return [p for p in panels.values() if p["curves"]]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--row", choices=sorted(ROWS), help="one row of figures")
    p.add_argument("--candidates", nargs="+", choices=CANDIDATES, help="default: all that run on the device")
    p.add_argument("--size", nargs="+", choices=sorted(SIZES), help="default: tiny 10m (GPU: 170m 340m)")
    p.add_argument("--tokens", nargs="+", type=int, help="default: 512 2048 8192 (GPU: 4096 16384 32768)")
    p.add_argument("--batch", type=int, help="sequences per step; default: 1, on a GPU 32768 tokens in all")
    p.add_argument("--parameters", type=float, default=0, help="parameters of every model; default: those of the size")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype of autocast; default on a GPU: bfloat16")
    p.add_argument("--compile", action="store_true", help="compile every model with torch.compile")
    p.add_argument("--checkpointing", action="store_true", help="use gradient checkpointing in every model")
    p.add_argument("--no-fused-loss", action="store_true", help="on a GPU: compute all logits of our models at once")
    p.add_argument("--backend", default="auto", help="backend of our memory")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's default")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--no-memory", action="store_true", help="measure time alone")
    p.add_argument("--probe-timeout", type=float, default=600.0, help="seconds for one memory measurement")
    p.add_argument("--out", type=Path, help="JSON file (default: a new one in benchmarks/results)")
    return p


def settings_of(arguments: argparse.Namespace) -> list[ModelSetting]:
    """The settings that the options describe; with --row, the row's settings with the options that apply to it."""
    common = {
        "seed": arguments.seed,
        "backend": arguments.backend,
        "compiled": arguments.compile,
        "checkpointing": arguments.checkpointing,
        "parameters": int(arguments.parameters),
    }
    if arguments.row:
        settings = [replace(s, **common) for s in ROWS[arguments.row]["settings"]]
        settings = [s for s in settings if arguments.size is None or s.size in arguments.size]
        settings = [s for s in settings if arguments.tokens is None or s.tokens in arguments.tokens]
        if arguments.batch:
            settings = [replace(s, batch=arguments.batch) for s in settings]
        if arguments.no_fused_loss:
            settings = [replace(s, fused_loss=False) for s in settings]
        if not settings:
            raise SystemExit(f"row {arguments.row} has no setting of that --size and --tokens")
        return list(dict.fromkeys(settings))
    gpu = arguments.device == "cuda"
    return [
        ModelSetting(
            size,
            tokens,
            arguments.batch or (max(1, GPU_TOKENS // tokens) if gpu else 1),
            dtype=arguments.dtype or ("bfloat16" if gpu else "float32"),
            device=arguments.device,
            fused_loss=gpu and not arguments.no_fused_loss,
            **common,
        )
        for size in arguments.size or (["170m", "340m"] if gpu else ["tiny", "10m"])
        for tokens in arguments.tokens or ([4096, 16384, 32768] if gpu else [512, 2048, 8192])
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = parser().parse_args(argv)
    warnings.simplefilter("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = settings_of(arguments)
    row = ROWS.get(arguments.row or "", {})
    names = arguments.candidates or row.get("names") or [*TRUNK, "llama", "gated-deltanet", "mamba2"]
    against = row.get("against") or ["attention-full", "attention-window", "llama"]
    device = torch.device(settings[0].device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this row needs a GPU, and torch finds none; rows for a CPU: cpu, mac-vs-titans-pytorch")
    topic = f"train_step_{arguments.row}" if arguments.row else "train_step"
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    report = new_report(topic, arguments.seed, device, options, arguments.out)
    if row:
        report.content["row"] = {"name": arguments.row, "target": row["target"]}
    for number, setting in enumerate(settings, 1):
        say(f"[{number}/{len(settings)}] {setting.label}")
        result = measure(setting, names, against, report, arguments)
        print(show(result), flush=True)
    if row:
        print(f"\nrow {arguments.row}, to reach: {row['target']}")
    path = report.finish()
    machine = report.content["machine"]
    panels = curves(report.content["results"])
    if panels:
        place = machine.get("gpu") or f"{machine['cpu']}, {machine['torch_threads']} threads"
        picture(path, panels, f"{topic}: {place}")
    return report.content


if __name__ == "__main__":
    main()
