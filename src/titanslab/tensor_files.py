"""Files of tensors: safetensors with a header, written whole or not at all, whose contents a checksum covers."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from titanslab.files import checksum, write_whole

CHECKSUM = "checksum"  # "XXH3 of the tensors:XXH3 of the header and of the first"; files of earlier releases have none


def weights_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of weights: names, shapes and up to 256 evenly spaced values of each.

    Values are rounded to bfloat16, so that a model has the same hash in every precision.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(named, key=lambda pair: pair[0]):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)][:256].to("cpu", torch.bfloat16).float()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds a NaN or an infinite number, "" if none does."""
    floating = {name: t.detach() for name, t in tensors.items() if t.is_floating_point()}
    sums = [t.sum(dtype=torch.promote_types(t.dtype, torch.float32)).double() for t in floating.values()]
    if not sums or math.isfinite(float(torch.stack(sums).sum())):  # one wait for the device
        return ""
    return next((name for name, t in floating.items() if not bool(t.isfinite().all())), "")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], noun: str
) -> None:
    """Write tensors and a header, to which the checksum is added; a reader finds the old or the new file.

    A symbolic link stays: the file it points to is replaced. `noun` is how errors call the contents.

    Raises:
        ValueError, FileNotFoundError: `path` is no file; its folder does not exist.
    """
    from safetensors.torch import save_file

    plain = {k: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise ValueError(f"{path} is {kind}; give the name of a file to save the {noun} to")
    if not path.parent.exists():
        raise FileNotFoundError(f"folder {path.parent} does not exist, {path.name} cannot be saved there")
    of_tensors = checksum(_parts(plain))
    header = {**metadata, CHECKSUM: f"{of_tensors}:{_header_checksum(metadata, of_tensors)}"}
    write_whole(path, lambda temporary: save_file(plain, temporary, header))


def read_tensors(path: Path, noun: str, way_out: str, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file, or {} without `tensors`. `noun` and `way_out` are words of the errors.

    Raises:
        FileNotFoundError, ValueError: no such file; a folder, or not a readable file of tensors.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise ValueError(f"{path} is a folder, and no {noun} file")
    if not path.is_file():
        raise FileNotFoundError(f"no {noun} file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable {noun} file (cut short or of another kind): {error}; {way_out}"
        ) from None
    return metadata, found


def agrees(metadata: Mapping[str, str], tensors: Mapping[str, Tensor] | None) -> bool:
    """Whether header and tensors are those that were saved; without `tensors`, the header alone is compared."""
    stored = metadata.get(CHECKSUM, "")
    of_tensors = stored.partition(":")[0] if tensors is None else checksum(_parts(tensors))
    return stored == f"{of_tensors}:{_header_checksum(metadata, of_tensors)}"


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Name, dtype, shape and bytes of each tensor, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {list(tensor.shape)};".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _header_checksum(metadata: Mapping[str, str], of_tensors: str) -> str:
    """Checksum of the header without its entry `checksum`, and of the checksum of the tensors."""
    entries = sorted((name, value) for name, value in metadata.items() if name != CHECKSUM)
    return checksum([json.dumps([of_tensors, *entries]).encode()])
