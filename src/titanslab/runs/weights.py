"""The files of a model's weights: found and checked by their headers before a value is read; safetensors alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from msgspec import Meta, Struct

from titanslab.documents import read_json

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FAR = 8  # times the parameters of the files: no model is made to find such a difference
WAY_OUT = "save the model again, or copy the file again from its source"


class _Index(Struct):
    weight_map: dict[str, Annotated[str, Meta(min_length=1)]]


class Header(NamedTuple):
    """A tensor as the header of its file describes it; `dtype` is a name of safetensors, such as "F32"."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in a folder: one, or those that its index names.

    Raises ValueError where there are none, and for an index that names a file outside the folder, a missing one or one
    of another format.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"model folder {str(folder)!r} holds no .safetensors file of a model; other formats are not read"
        )
    names = sorted(set(read_json(folder / INDEX, _Index, fix=WAY_OUT).weight_map.values()))
    for name in names:
        where = f"{str(folder / INDEX)!r} names the file {name[:80]!r}"
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors") or not name.isprintable():
            raise ValueError(f"{where}, which is not a .safetensors file in its own folder; {WAY_OUT}")
        if not (folder / name).is_file():
            raise ValueError(f"{where}, which is missing; {WAY_OUT}")
    if not names:
        raise ValueError(f"{str(folder / INDEX)!r} names no file; {WAY_OUT}")
    return [folder / name for name in names]


def headers(files: list[Path]) -> Iterator[Header]:
    """Each tensor of safetensors files; ValueError for a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, "pt") as held:
                for name in held.keys():  # noqa: SIM118 - not a dict
                    part = held.get_slice(name)
                    yield Header(file, name, str(part.get_dtype()), tuple(part.get_shape()))
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{str(file)!r} is not a whole safetensors file: {reason}; {WAY_OUT}") from None


def check_model_files(folder: Path, config: Any) -> list[Path]:
    """The files of a model's weights, with dtypes that belong to its config; ValueError names the first other tensor.

    A Titans model has float32 beside the dtype of its config. Of another model without quantisation no matrix may hold
    whole numbers.
    """
    from titanslab.models.config import TitansConfig

    files, size, own = weight_files(folder), 0, isinstance(config, TitansConfig)
    quantised = getattr(config, "quantization_config", None) is not None
    named = DTYPES.get(str(getattr(config, "dtype", None)).rpartition(".")[2])
    allowed = {named, "F32"} if named else set(DTYPES.values())
    for tensor in headers(files):
        whole = tensor.dtype[0] in "IUB" and tensor.dtype != "BF16" and tensor.name.endswith("weight")
        if tensor.dtype not in allowed if own else whole and not quantised:
            raise ValueError(
                f"the tensor {tensor.name!r} in {str(tensor.file)!r} has dtype {tensor.dtype}, and the model's config "
                f"allows {' and '.join(sorted(allowed)) if own else 'floating-point numbers'}; {WAY_OUT}"
            )
        size += math.prod(tensor.shape)
    if own:
        from titanslab.models.cost import least_parameters

        if (least := least_parameters(config)) > FAR * size:  # what is nearer is told by the tensors' names and shapes
            raise ValueError(
                f"the config in {str(folder)!r} describes at least {least:,} parameters, and its files hold {size:,}; "
                "the config belongs to another model"
            )
    return files


def difference(files: list[Path], wanted: Mapping[str, torch.Tensor], names_too: bool = True) -> str:
    """The first tensor in which files differ from a model's `state_dict()`, in words; "" where there is none.

    A tensor that shares its memory with one that is there may be missing. Without `names_too`, dtypes and shapes of
    the tensors that both have are compared alone: some models of transformers save tensors under other names.
    """
    found: set[int] = set()
    names = set()
    for tensor in headers(files):
        model = wanted.get(tensor.name)
        if model is None and not names_too:
            continue
        if model is None:
            return f"the tensor {tensor.name!r} in {str(tensor.file)!r} is not one of the model"
        names.add(tensor.name)
        found.add(model.data_ptr())
        if tensor.shape != tuple(model.shape):
            return (
                f"the tensor {tensor.name!r} in {str(tensor.file)!r} has shape {list(tensor.shape)}, and the model's "
                f"has {list(model.shape)}"
            )
        dtype = DTYPES.get(str(model.dtype).rpartition(".")[2])
        if dtype is not None and not model.is_meta and tensor.dtype != dtype:
            return (
                f"the tensor {tensor.name!r} in {str(tensor.file)!r} has dtype {tensor.dtype}, and the model's {dtype}"
            )
    for name, model in wanted.items():
        if names_too and name not in names and model.data_ptr() not in found:
            return f"the tensor {name!r} is missing in {str(files[0])!r}"
    return ""
