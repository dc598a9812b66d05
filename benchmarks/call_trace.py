"""Count the Python calls of one step of a one-block model, and how often the file changes from one call to the next.

    python -m benchmarks.call_trace
    python -m benchmarks.call_trace --variant lmm --step decode --list

A reader who follows a token through the code changes file as often. Only files of the package count.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import titanslab
from titanslab import TitansConfig, TitansForCausalLM

PACKAGE = str(Path(titanslab.__file__).parent)
TOKENS = 64


class Trace:
    """Records, inside a `with`, the file of every Python call in the package and of every return from one."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.calls: Counter[str] = Counter()

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "return") and frame.f_code.co_filename.startswith(PACKAGE):
            self.files.append(frame.f_code.co_filename[len(PACKAGE) + 1 :])
            self.calls[self.files[-1]] += event == "call"

    def __enter__(self) -> "Trace":
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    @property
    def changes(self) -> int:
        """Number of calls and returns whose file differs from that of the event before."""
        return sum(a != b for a, b in zip(self.files, self.files[1:], strict=False))


def trace(variant: str, step: str) -> Trace:
    """Trace one `step` ("train": forward and backward of 64 tokens in segments of 32; "decode": one token)."""
    config = TitansConfig(
        variant=variant, vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, chunk_size=16,
        segment_len=32, window_size=32, num_persistent_tokens=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = TitansForCausalLM(config)
    ids = torch.randint(config.vocab_size, (1, TOKENS))
    if step == "train":
        model.train()
        model(ids, labels=ids).loss.backward()  # loads the kernels
        with Trace() as found:
            model(ids, labels=ids).loss.backward()
        return found
    model.eval()
    with torch.no_grad():
        cache = model(ids, use_cache=True)[1]
        model(ids[:, :1], past_key_values=cache)
        with Trace() as found:
            model(ids[:, :1], past_key_values=cache)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="mac", choices=("lmm", "mal", "mag", "mac"))
    parser.add_argument("--step", default="train", choices=("train", "decode"))
    parser.add_argument("--list", action="store_true", help="also print the calls of each file")
    arguments = parser.parse_args()
    found = trace(arguments.variant, arguments.step)
    memory = sum(name.startswith("memory") for name in found.calls)
    print(
        f"{arguments.variant} {arguments.step}: {len(found.calls)} files ({memory} of memory/), "
        f"{found.changes} changes of file, {found.calls.total()} Python calls"
    )
    if arguments.list:
        for name, count in found.calls.most_common():
            print(f"{count:6d}  {name}")


if __name__ == "__main__":
    main()
