"""Time per token and bytes of the cache after 1K, 64K, 1M and 10M tokens, when decoding and when prefilling a block.

    python -m benchmarks.decode                     tiny on a CPU, 170m on a GPU
    python -m benchmarks.decode --real 65536        caches of up to 64K tokens are read, longer ones advanced
    python -m benchmarks.decode --real 10485760     all caches are read (hours on a CPU)

The JSON records how each cache of N tokens was made. "read": the model read N random tokens in blocks. "advanced": it
read --real tokens, and then its token counters were set to N. Shapes, code and arithmetic are those of N tokens; the
contents of memory and windows are those of --real tokens. "filled" (full attention): N random keys and values. All
positions are timed in turns within one run.
"""

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import ERRORS, in_turns, one_line, ratio, spread
from benchmarks.models import (
    SIZES,
    TITANS,
    TRUNK,
    ModelSetting,
    count_parameters,
    fit_width,
    fitted_titans_config,
    llama_config,
)
from benchmarks.output import human, new_report, quiet_progress, table
from benchmarks.peers import Missing
from benchmarks.rates import rate_probes
from titanslab.experiments.report import Report, picture, say
from titanslab.models.cache import CACHE, cache_of

POSITIONS = (1 << 10, 1 << 16, 1 << 20, 10 << 20)
CANDIDATES = (*TRUNK, "llama")
READ_BLOCK = 4096


@dataclass
class Past:
    """A cache after `tokens` tokens, and how it was made."""

    tokens: int
    cache: Any
    how: str
    fork: Callable[[Any], Any]
    nbytes: int
    graph: Any = None


class Decoder:
    """A model that continues from a cache: `decode` token by token, `prefill` with a block in one call."""

    def __init__(self, name: str, s: ModelSetting) -> None:
        self.name, self.setting = name, s
        torch.manual_seed(s.seed)
        if name == "llama":
            from transformers import LlamaForCausalLM

            def count(width: int) -> int:
                with torch.device("meta"):
                    return count_parameters(LlamaForCausalLM(llama_config(s, width)))

            model: nn.Module = LlamaForCausalLM(llama_config(s, fit_width(count, s.target)))
        else:
            from titanslab import TitansForCausalLM

            config = fitted_titans_config(name, s)
            with torch.device(s.device):
                model = TitansForCausalLM(config)
        self.config: Any = getattr(model, "config")  # noqa: B009
        self.parameters = count_parameters(model)
        dtype = getattr(torch, s.dtype)
        # as in from_pretrained(dtype=...), the memory's parameters remain float32
        keep = getattr(model, "_keep_in_fp32_modules_strict", None) or []
        for key, parameter in model.named_parameters():
            if not any(part in key for part in keep):
                parameter.data = parameter.data.to(dtype)
        self.model = model.to(s.device).eval()
        vocab_size = int(self.config.vocab_size)
        generator = torch.Generator().manual_seed(s.seed + 1)
        self.tokens = torch.randint(0, vocab_size, (s.batch, READ_BLOCK), generator=generator)
        self.tokens = self.tokens.to(s.device)

    @property
    def grows(self) -> bool:
        """Whether the cache holds every token."""
        return self.name in ("attention-full", "llama")

    def bytes_per_token(self) -> int:
        """Bytes that one more token adds to a growing cache."""
        item = getattr(torch, self.setting.dtype).itemsize
        return 2 * self.setting.batch * self.config.num_hidden_layers * self.config.hidden_size * item

    def read(self, cache: Any, tokens: int, progress: Callable[[str], None] | None = None) -> Any:
        """Read `tokens` more tokens in blocks; return the new cache."""
        done = 0
        while done < tokens:
            block = self.tokens[:, : min(READ_BLOCK, tokens - done)]
            with torch.no_grad():
                out = self.model(block, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
            cache, done = cache_of(out), done + block.shape[1]
            if progress is not None:
                progress(f"{self.name}: read {done:,} of {tokens:,} tokens")
        return cache

    def past(self, tokens: int, real: int, memory_limit: int, progress: Callable[[str], None] | None = None) -> Past:
        """A cache of `tokens` tokens, of which the model reads at most `real`.

        Raises:
            Missing: three copies of a growing cache exceed `memory_limit` bytes, or the boundaries of chunks and
                segments would move.
        """
        if self.grows and 3 * tokens * self.bytes_per_token() > memory_limit:
            need = tokens * self.bytes_per_token()
            raise Missing(f"a cache of {tokens:,} tokens takes {human(need)}; three copies exceed --memory-limit")
        if self.name == "llama":
            return self._llama_past(tokens, min(tokens, real), progress)
        from titanslab import TitansCache

        reads = min(tokens, real)
        if not self.grows:
            # an advance must keep the boundaries of chunks and segments
            step = self._period()
            if reads < tokens and (tokens - reads) % step:
                raise Missing(f"cannot advance from {reads:,} to {tokens:,}: not a multiple of {step:,} tokens")
        cache = TitansCache(self.config)
        cache = self.read(cache, reads, progress)
        how = "read"
        if reads < tokens:
            how = f"advanced from {reads:,} read"
            if self.grows:
                how = f"filled with random keys and values after {reads:,} read"
                cache.states = [self._fill(state, tokens - reads) for state in cache.states]
            assert cache.position is not None
            cache.position = cache.position + (tokens - reads)
            cache.columns += tokens - reads
        return Past(tokens, cache, how, lambda c: c.fork(), cache.nbytes())

    def _period(self) -> int:
        """Number of tokens after which chunk and segment boundaries repeat."""
        parts = [self.config.chunk_size] if self.name in TITANS else [1]
        if self.name == "mac":
            parts.append(self.config.segment_len)
        return math.lcm(*parts)

    def _fill(self, state: Any, more: int) -> Any:
        def longer(t: Tensor) -> Tensor:
            generator = torch.Generator(t.device).manual_seed(0)
            shape = (*t.shape[:2], more, t.shape[3])
            return torch.cat((t, torch.randn(shape, generator=generator, device=t.device, dtype=t.dtype)), dim=2)

        return replace(state, keys=longer(state.keys), values=longer(state.values))

    def _llama_past(self, tokens: int, reads: int, progress: Callable[[str], None] | None) -> Past:
        from transformers import DynamicCache

        cache = self.read(DynamicCache(config=self.config), reads, progress)
        how = "read"
        if reads < tokens:
            how = f"filled with random keys and values after {reads:,} read"
            for i, layer in enumerate(cache.layers):
                shape = (*layer.keys.shape[:2], tokens - reads, layer.keys.shape[3])
                cache.update(torch.randn(shape).to(layer.keys), torch.randn(shape).to(layer.keys), i)
        size = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))

        def cut(c: Any) -> Any:
            # remove the tokens of the last turn; nothing is copied
            if c.get_seq_length() > tokens:
                c.crop(tokens - c.get_seq_length())
            return c

        return Past(tokens, cache, how, cut, size)

    @torch.no_grad()
    def decode(self, past: Past, count: int) -> Tensor:
        """`count` greedy steps of one token from the cache, which is not changed."""
        cache = past.fork(past.cache)
        token = self.tokens[:, :1]
        for _ in range(count):
            out = self.model(token, **{CACHE: cache}, use_cache=True)
            cache, token = cache_of(out), out.logits[:, -1:].argmax(-1)
        return token

    def graph(self, past: Past, count: int) -> Tensor:
        """The same steps as a CUDA graph, recorded in the first call. A call continues after the last one."""
        from titanslab.models.decode_graph import DecodeGraph

        if past.graph is None:
            past.graph = DecodeGraph(self.model, past.cache)
        token = self.tokens[:, 0]
        for _ in range(count):
            token = past.graph(token).argmax(-1)
        return token

    @torch.no_grad()
    def prefill(self, past: Past, count: int) -> Tensor:
        """One call with `count` tokens from the cache, which is not changed."""
        cache = past.fork(past.cache)
        return self.model(self.tokens[:, :count], **{CACHE: cache}, use_cache=True, logits_to_keep=1).logits


def measure(name: str, s: ModelSetting, report: Report, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Measure one model: all positions and the machine's rates, in turns."""
    device = torch.device(s.device)
    try:
        decoder = Decoder(name, s)
    except (Missing, *ERRORS) as error:
        report.missing(name, str(error) if isinstance(error, Missing) else one_line(error))
        return None
    result: dict[str, Any] = {
        "name": name,
        "setting": asdict(s),
        "parameters": decoder.parameters,
        "positions": {},
        "left_out": {},
    }
    calls: dict[str, Callable[[], Any]] = {}
    pasts: dict[str, Past] = {}
    # a growing cache makes every step slow, so few steps suffice
    steps = min(arguments.decode_tokens, 16) if decoder.grows else arguments.decode_tokens
    counts = {"decode": steps, "graph": steps, "prefill": arguments.prefill_tokens}
    what_here = [w for w in arguments.what if w != "graph" or not decoder.grows]
    if what_here != arguments.what:
        report.missing(f"{name}, graph", "a step with a growing cache cannot be recorded")
    result["tokens_per_turn"] = counts
    with quiet_progress() as show_progress:
        for tokens in arguments.positions:
            real = arguments.real if not decoder.grows else min(arguments.real, 4096)
            try:
                past = decoder.past(tokens, real, arguments.memory_limit << 30, show_progress)
            except Missing as error:
                result["left_out"][str(tokens)] = str(error)
                report.missing(f"{name} at {tokens:,}", str(error))
                continue
            pasts[str(tokens)] = past
            result["positions"][str(tokens)] = {"how": past.how, "cache_bytes": past.nbytes}
            for what in what_here:
                call = getattr(decoder, what)
                calls[f"{what} {tokens}"] = lambda c=call, p=past, n=counts[what]: c(p, n)  # type: ignore[misc]
        probes = rate_probes(device, torch.float32, [])
        seconds, failed = in_turns(
            {**calls, **probes},
            device,
            arguments.repeats,
            arguments.warmup,
            lambda text: show_progress(f"{name}  {text}"),
        )
    result["rates"] = {n: p.work / spread(seconds[n])["median"] for n, p in probes.items()}  # type: ignore[attr-defined]
    for key, reason in failed.items():
        say(f"FAILED {name} {key}: {reason}")
    for key, entry in result["positions"].items():
        for what in what_here:
            label = f"{what} {key}"
            if label in failed:
                entry[what] = {"error": failed[label]}
                continue
            entry[what] = spread([t / counts[what] for t in seconds[label]])
        # floor of a step: the parameters and the cache are read once
        moved = 4 * decoder.parameters + entry["cache_bytes"]
        entry["decode_floor_seconds"] = moved / result["rates"]["copy"]
    first = next(iter(result["positions"]), None)
    result["ratios"] = {
        f"{what} {key} / {first}": ratio(seconds[f"{what} {first}"], seconds[f"{what} {key}"])
        for what in what_here
        for key in result["positions"]
        if key != first and f"{what} {key}" in seconds and f"{what} {first}" in seconds
    }
    sizes = {entry["cache_bytes"] for entry in result["positions"].values()}
    result["cache_bytes_equal"] = len(sizes) == 1
    return result


def show(result: dict[str, Any], what: list[str]) -> str:
    """The results of one model as a table."""
    lines = []
    for key, entry in result["positions"].items():
        row = [f"{int(key):,}"]
        for part in what:
            timing = entry.get(part, {"error": "-"})
            row.append(f"{1e3 * timing['median']:.3f} ms" if "median" in timing else timing["error"][:24])
        lines.append([*row, human(entry["cache_bytes"]), entry["how"]])
    text = [f"\n{result['name']}, {result['parameters'] / 1e6:.2f}M parameters, {result['setting']['dtype']}"]
    text.append(table(["tokens read", *(f"{w} / token" for w in what), "cache", "how"], lines))
    for name, r in result["ratios"].items():
        low, high = r["range"]
        text.append(f"{name}: {r['median']:.3f}x  ({low:.3f} .. {high:.3f} over the turns)")
    return "\n".join(text)


def curves(results: list[dict[str, Any]], what: list[str]) -> list[dict[str, Any]]:
    """Panels of the picture: time per token of each kind and bytes of the cache, over tokens read."""
    panels: list[dict[str, Any]] = []
    for part in what:
        curve = {
            r["name"]: [
                (int(k), *(1e3 * v for v in (e[part]["median"], *e[part]["quartiles"])))
                for k, e in r["positions"].items()
                if "median" in e.get(part, {})
            ]
            for r in results
        }
        panels.append({"title": part, "x": "tokens already read", "y": "ms per token", "curves": curve})
    sizes = {
        r["name"]: [(int(k), *[e["cache_bytes"] / (1 << 20)] * 3) for k, e in r["positions"].items()] for r in results
    }
    return [*panels, {"title": "cache", "x": "tokens already read", "y": "MiB", "curves": sizes}]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--what",
        nargs="+",
        choices=["decode", "graph", "prefill"],
        help="graph is decoding as a CUDA graph; default: all, without graph on a CPU",
    )
    p.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    p.add_argument("--size", choices=sorted(SIZES), help="default: tiny (GPU: 170m)")
    p.add_argument("--positions", nargs="+", type=int, default=list(POSITIONS), help="tokens already read")
    p.add_argument("--real", type=int, default=4096, help="most tokens that are read to make a cache")
    p.add_argument("--decode-tokens", type=int, default=128, help="steps per turn; best a multiple of the segment")
    p.add_argument("--prefill-tokens", type=int, default=1024, help="tokens of the prefilled block, at most 4096")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype of the model; default on a GPU: bfloat16")
    p.add_argument("--backend", default="auto", help="backend of our memory")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's default")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--memory-limit", type=int, default=8, help="most GiB for growing caches")
    p.add_argument("--out", type=Path, help="JSON file (default: a new one in benchmarks/results)")
    return p


def main(argv: list[str] | None = None) -> dict[str, Any]:
    p = parser()
    arguments = p.parse_args(argv)
    warnings.simplefilter("ignore")
    if not 1 <= arguments.prefill_tokens <= READ_BLOCK:
        p.error(f"--prefill-tokens must be 1 to {READ_BLOCK}, got {arguments.prefill_tokens}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    gpu = arguments.device == "cuda"
    if not gpu and "graph" in (arguments.what or ()):
        p.error(f"--what graph needs a GPU, got --device {arguments.device}")
    arguments.what = arguments.what or (["decode", "graph", "prefill"] if gpu else ["decode", "prefill"])
    arguments.positions = sorted(set(arguments.positions))
    setting = ModelSetting(
        arguments.size or ("170m" if gpu else "tiny"),
        READ_BLOCK,
        arguments.batch,
        dtype=arguments.dtype or ("bfloat16" if gpu else "float32"),
        device=arguments.device,
        seed=arguments.seed,
        backend=arguments.backend,
    )
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    topic = "_".join(arguments.what)
    report = new_report(topic, arguments.seed, torch.device(arguments.device), options, arguments.out)
    for number, name in enumerate(arguments.candidates, 1):
        say(f"[{number}/{len(arguments.candidates)}] {name}")
        result = measure(name, setting, report, arguments)
        if result is not None:
            report.add(result)
            print(show(result, arguments.what), flush=True)
    path = report.finish()
    machine = report.content["machine"]
    results = report.content["results"]
    if results:
        place = machine.get("gpu") or f"{machine['cpu']}, {machine['torch_threads']} threads"
        picture(path, curves(results, arguments.what), f"{topic}, {setting.size}: {place}")
    return report.content


if __name__ == "__main__":
    main()
