"""What other packages of Titans can do, tried: causality, splitting a text, padding.

    pip install -e '.[bench]'
    python -m benchmarks.peer_features

Prints one line a fact. A package that is not installed is named and left out.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

import torch
from torch import Tensor

TOKENS, CHANGED = 256, 150


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference of two outputs."""
    return float((a - b).abs().max())


def leak(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """How much the outputs before a token change with that token: 0 if causal."""
    other = x.clone()
    other[:, CHANGED] += 1
    return difference(call(x)[:, :CHANGED], call(other)[:, :CHANGED])


def split(whole: Tensor, parts: Callable[[int], Tensor], cut: int) -> str:
    """How far a text in two parts is from the whole one, or the error of the second part."""
    try:
        return f"{difference(parts(cut), whole):.0e}"
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"


def ours() -> None:
    from titanslab import NeuralMemory

    memory, x = NeuralMemory(16, 2, chunk_size=16).double(), torch.randn(1, TOKENS, 16).double()

    def parts(cut: int) -> Tensor:
        first, state = memory(x[:, :cut])
        return torch.cat((first, memory(x[:, cut:], state)[0]), 1)

    whole = memory(x)[0]
    print(f"NeuralMemory: leak {leak(lambda x: memory(x)[0], x):.0e}, split at 128 {split(whole, parts, 128)}, "
          f"at 150 {split(whole, parts, 150)}")  # fmt: skip


def titans_pytorch() -> None:
    from titans_pytorch import NeuralMemory

    memory, x = NeuralMemory(dim=16, chunk_size=16).double().eval(), torch.randn(1, TOKENS, 16).double()

    def parts(cut: int) -> Tensor:
        first, state = memory(x[:, :cut])
        return torch.cat((first, memory(x[:, cut:], state=state)[0]), 1)

    whole = memory(x)[0]
    print(f"NeuralMemory: leak {leak(lambda x: memory(x)[0], x):.0e}, split at 128 {split(whole, parts, 128)}, "
          f"at 150 {split(whole, parts, 150)}")  # fmt: skip
    print(f"arguments of forward: {', '.join(inspect.signature(memory.forward).parameters)}")


def titans() -> None:
    package = import_module("titans")
    for name in ("TitansMAC", "TitansMAG", "TitansMAL"):
        model = getattr(package, name)(d_model=16, n_layers=2, n_heads=2, persist_memory=True).double().eval()
        x = torch.randn(1, TOKENS, 16).double()

        def read(*texts: Tensor, model: torch.nn.Module = model) -> Tensor:
            model.reset_memory()
            return torch.cat([model(text) for text in texts], 1)

        def parts(cut: int, read: Callable[..., Tensor] = read, x: Tensor = x) -> Tensor:
            return read(x[:, :cut], x[:, cut:])

        whole = read(x)
        print(f"{name}: leak {leak(read, x):.0e}, split at 128 {split(whole, parts, 128)}, at 150 "
              f"{split(whole, parts, 150)}, arguments of forward: "
              f"{', '.join(inspect.signature(model.forward).parameters)}")  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    for package, facts in {"titans-lab": ours, "titans-pytorch": titans_pytorch, "titans-unofficial": titans}.items():
        try:
            print(f"== {package} {version(package)}")
        except ImportError:
            print(f"== {package} is not installed: pip install -e '.[bench]'")
            continue
        with torch.no_grad():
            facts()


if __name__ == "__main__":
    main()
