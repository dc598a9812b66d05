"""Where what was compiled or measured on this machine is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`TITANS_CACHE`, else the user's cache folder."""
    root = os.environ.get("TITANS_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "titanslab"
