"""The device that a command's --device option names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def pick_device(name: str | torch.device) -> Any:
    """The torch device of a name; "auto" is a GPU where there is one. ValueError for one that is not here."""
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
