"""The text of a recipe as nested values; no key is checked here, so that a missing file is told at once."""

from pathlib import Path
from typing import Any

from titanslab.documents import read_toml


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file; FileNotFoundError or ValueError naming the file where that cannot be read."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"recipe {str(path)!r} is a folder; give a TOML file, such as {str(path / 'recipe.toml')!r}")
    if not path.exists():
        raise FileNotFoundError(f"recipe {str(path)!r} does not exist (looked for {path.absolute()})")
    return read_toml(path, "recipe")
