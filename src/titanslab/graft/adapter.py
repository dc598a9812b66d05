"""The folder of a graft: `adapter_config.json` and `adapter_model.safetensors`, as PEFT names them; no base weights.

PEFT itself cannot register a method of another package: `register_peft_method` takes names of PEFT's own enumeration
`PeftType` alone. The files have its names and the same rôle, and an adapter of PEFT beside the memories is saved by
PEFT in the subfolder `lora`.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Struct, UnsetType, to_builtins
from torch import Tensor, nn

from titanslab._version import __version__
from titanslab.documents import read_json
from titanslab.files import remove_whole, write_whole
from titanslab.graft.identity import adapter_hash, base_hash, has_adapters
from titanslab.graft.structure import find_decoder
from titanslab.tensor_files import CHECKSUM, agrees, not_finite, read_tensors, write_tensors

if TYPE_CHECKING:
    from titanslab.graft.handle import Graft

CONFIG, WEIGHTS, LORA = "adapter_config.json", "adapter_model.safetensors", "lora"
KIND = "TITANS"
COPY = "copy or save the adapter again"


class AdapterConfig(Struct):
    """The contents of `adapter_config.json`.

    `graft` are the options, `layers` the grafted layers, `base_model_hash` and `adapter_hash` the hashes of
    `identity`, `weights` the checksum of the file of weights. `lora`: whether there is an adapter of PEFT.
    """

    graft: dict[str, Any]
    layers: list[int]
    hidden_size: int
    num_layers: int
    base_model_hash: str
    adapter_hash: str
    weights: str
    base_model_name_or_path: str | None = None
    lora: bool = False
    peft_type: str = KIND
    task_type: str = "CAUSAL_LM"
    titanslab_version: str = __version__
    base_model_class: str | UnsetType = UNSET


def save_graft(handle: "Graft", folder: str | os.PathLike[str]) -> None:
    """Write the memories of a graft, and the adapters of PEFT around it, to a folder.

    Raises:
        ValueError: the weights of the base have changed since `graft()`; adapters of PEFT were added after it.
        FloatingPointError: the memories have numbers that are not finite.
    """
    path, model, decoder = Path(folder), handle.model, handle.decoder
    if path.is_file():
        raise ValueError(f"{path} is a file; give a folder")
    if (now := base_hash(decoder.body)) != handle.base:
        raise ValueError(
            "the weights of the base have changed since graft(), by training or by merging an adapter, and an adapter "
            "holds none of them; save_base(model, folder) writes them and makes that folder the base"
        )
    has_lora = has_adapters(decoder.body)
    if has_lora and not (hasattr(model, "get_base_model") or getattr(model, "_hf_peft_config_loaded", False)):
        raise ValueError(
            "adapters of PEFT were added after graft(), which freezes the memories; call get_peft_model before graft"
        )
    tensors = weights_of(handle)
    if name := not_finite(tensors):
        raise FloatingPointError(f"{path} was not written: the memories have numbers that are not finite in {name!r}")
    path.mkdir(parents=True, exist_ok=True)
    remove_whole(path / LORA)
    if has_lora:
        write_whole(path / LORA, lambda place: type(model).save_pretrained(model, place))
    write_tensors(path / WEIGHTS, tensors, {"format": "pt"}, "adapter")
    checksum = read_tensors(path / WEIGHTS, "adapter", COPY, tensors=False)[0][CHECKSUM]
    inner = getattr(model, "get_base_model", lambda: model)()
    name = str(getattr(inner.config, "_name_or_path", "") or "")
    contents = AdapterConfig(
        handle.config.to_dict(),
        list(handle.layers),
        decoder.hidden_size,
        len(decoder.attentions),
        now,
        adapter_hash(handle),
        checksum,
        (os.path.abspath(name) if os.path.isdir(name) else name) or None,
        has_lora,
        base_model_class=type(inner).__name__,
    )
    write_whole(path / CONFIG, json.dumps(to_builtins(contents), indent=2) + "\n")


def weights_of(handle: "Graft") -> dict[str, Tensor]:
    """The parameters of the memories by the names that they have in a file."""
    return {
        f"layers.{layer}.{name}": parameter
        for layer, memory in zip(handle.layers, handle.memories, strict=True)
        for name, parameter in memory.named_parameters()
    }


def read_adapter_config(path: Path) -> AdapterConfig:
    """The contents of `adapter_config.json` in a folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"adapter {str(path)!r} does not exist or is no folder")
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{str(path)!r} holds no adapter: {CONFIG} is missing")
    kind = read_json(path / CONFIG, dict[str, Any], fix=COPY).get("peft_type")
    if kind != KIND:
        raise ValueError(
            f"{path / CONFIG} is of the kind {kind!r:.40}, not {KIND}; PEFT opens adapters of its own kinds"
        )
    return read_json(path / CONFIG, AdapterConfig, fix=COPY)


def read_weights(path: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """The tensors of an adapter; ValueError if they are damaged or not those that were saved with `config`."""
    metadata, tensors = read_tensors(path / WEIGHTS, "adapter", COPY)
    if not agrees(metadata, tensors):
        raise ValueError(f"{path / WEIGHTS} is damaged: its contents do not agree with its checksum; {COPY}")
    if metadata[CHECKSUM] != config.weights:
        raise ValueError(f"{path / WEIGHTS} belongs to another {CONFIG}; {COPY}")
    return tensors


def set_weights(path: Path, handle: "Graft", tensors: dict[str, Tensor]) -> None:
    """Copy the tensors of an adapter into the memories; ValueError if a name or a shape does not fit."""
    parameters = weights_of(handle)
    if wrong := sorted(parameters.keys() ^ tensors.keys()):
        where = "lacks" if wrong[0] in parameters else "has more than its options say:"
        raise ValueError(f"{path / WEIGHTS} {where} {wrong[0]}; {COPY}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise ValueError(
                f"{path / WEIGHTS} has {name} of shape {list(tensors[name].shape)}, and {list(parameter.shape)} is "
                f"needed; {COPY}"
            )
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def compare_base(path: Path, config: AdapterConfig, model: nn.Module, hashes: bool = True) -> None:
    """ValueError unless the model is the base with which an adapter was saved, by size and by `hashes`."""
    decoder = find_decoder(model)
    theirs, mine = (config.hidden_size, config.num_layers), (decoder.hidden_size, len(decoder.attentions))
    if theirs != mine:
        raise ValueError(
            f"{path} is the adapter of a base of width {theirs[0]} with {theirs[1]} layers, and this base has width "
            f"{mine[0]} and {mine[1]} layers"
        )
    if hashes and (found := base_hash(decoder.body)) != config.base_model_hash:
        raise ValueError(
            f"{path} is the adapter of another base: the hash of its weights is {config.base_model_hash}, that of this "
            f"base {found}; check_base=False opens it nevertheless"
        )
