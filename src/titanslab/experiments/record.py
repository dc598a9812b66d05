"""Small JSON files in a job's folder, which hold what was measured and the settings it depends on."""

import json
from pathlib import Path
from typing import Any

from titanslab.documents import read_json
from titanslab.files import write_whole


def read_record(path: Path) -> dict[str, Any]:
    """The content of a record; empty where there is none."""
    return read_json(path, dict[str, Any], fix="delete it") if path.exists() else {}


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    write_whole(path, json.dumps(content, indent=1) + "\n")
