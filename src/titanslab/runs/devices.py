"""The --device option."""

from __future__ import annotations

from typing import Any


def pick_device(name: str) -> Any:
    """The torch device for a name, "auto" for a GPU where there is one; ValueError for what is not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"--device {name!r} cannot be used; here: auto, {', '.join(here)}") from error
    return device
