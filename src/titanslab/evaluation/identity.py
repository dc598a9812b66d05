"""The identity of a model by the contents of its files, so that a folder of results is for one model alone."""

from pathlib import Path
from typing import Any

from titanslab.data.encode import tokenizer_identity
from titanslab.files import file_identity, fingerprint


def model_identity(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Fingerprints of the weights, the config and the tokenizer of the model in a folder."""
    return {
        "weights": fingerprint({"files": [file_identity(f) for f in sorted(folder.glob("*.safetensors"))]}),
        "config": fingerprint({"file": file_identity(folder / "config.json")}),
        "tokenizer": tokenizer_identity(tokenizer),
    }
