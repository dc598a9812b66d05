"""The text of a recipe as nested values; no key is checked here, so that a missing file is told at once."""

import tomllib
from pathlib import Path
from typing import Any


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file; FileNotFoundError or ValueError naming the file where that cannot be read."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"recipe {str(path)!r} is a folder; give a TOML file, such as {str(path / 'recipe.toml')!r}")
    if not path.exists():
        raise FileNotFoundError(f"recipe {str(path)!r} does not exist (looked for {path.absolute()})")
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        kind = "a text file in UTF-8" if isinstance(error, UnicodeDecodeError) else "valid TOML"
        raise ValueError(f"recipe {str(path)!r} is not {kind}: {error}") from error
