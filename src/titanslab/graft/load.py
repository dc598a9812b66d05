"""`load_graft` opens a base with the memories of a folder, `save_base` writes a base that was trained too."""

import os
from pathlib import Path
from typing import Any

from torch import nn

from titanslab.documents import reason
from titanslab.graft.adapter import (
    CONFIG,
    COPY,
    LORA,
    AdapterConfig,
    compare_base,
    read_adapter_config,
    read_weights,
    set_weights,
)
from titanslab.graft.attach import graft
from titanslab.graft.config import GraftConfig
from titanslab.graft.identity import base_hash, has_adapters
from titanslab.graft.structure import NAME


def load_graft(
    folder: str | os.PathLike[str],
    base: Any = None,
    *,
    trainable: bool = False,
    check_base: bool = True,
    **options: Any,
) -> Any:
    """Open the adapter in a folder and its base; returns the grafted model in evaluation mode.

    Args:
        folder: what `save_pretrained` of a grafted model wrote.
        base: the base model, or its name or folder; None = the name in the adapter. An adapter of PEFT in the folder is
            opened too.
        trainable: whether the memories, and the adapter of PEFT, have gradients.
        check_base: False opens the adapter with a base whose weights differ, such as a quantised one.
        options: of `AutoModelForCausalLM.from_pretrained`, such as `dtype` and `device_map`.

    Raises:
        FileNotFoundError: no such folder, or no adapter in it.
        ValueError: not an adapter of this kind, cut short or damaged, of another base, or of a base of another width.
    """
    path = Path(folder)
    config = read_adapter_config(path)
    model: Any = _base(path, config, base, options)
    compare_base(path, config, model, hashes=check_base)
    tensors = read_weights(path, config)
    if config.lora:
        model = _with_lora(path / LORA, model, trainable)
    try:
        model = graft(model, GraftConfig.from_dict(config.graft))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / CONFIG} does not fit its base: {reason(error)}") from None
    set_weights(path, model.graft, tensors)
    if not trainable:
        model.requires_grad_(False)
    return model.eval()


def load_memories(model: Any, folder: str | os.PathLike[str]) -> None:
    """Put the memories saved in a folder into a grafted model, for example to go on with training.

    Raises the errors of `load_graft`.
    """
    path = Path(folder)
    config = read_adapter_config(path)
    compare_base(path, config, model)
    set_weights(path, model.graft, read_weights(path, config))


def save_base(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write the base of a grafted model without its memories, and make that folder the base of the graft.

    For a base whose weights were trained too, or into which an adapter of PEFT was merged.

    Raises:
        ValueError: adapters of PEFT are around the base; merge them first.
    """
    handle = model.graft
    if has_adapters(handle.decoder.body):
        raise ValueError("adapters of PEFT are around the base; save_pretrained(folder) saves them beside the memories")
    weights = {n: t for n, t in model.state_dict().items() if f".{NAME}." not in f".{n}"}
    type(model).save_pretrained(model, folder, state_dict=weights)
    model.config._name_or_path = str(folder)
    handle.model, handle.base = model, base_hash(handle.decoder.body)


def _base(path: Path, config: AdapterConfig, base: Any, options: dict[str, Any]) -> Any:
    """The base model of an adapter."""
    if isinstance(base, nn.Module):
        return base
    from transformers import AutoModelForCausalLM

    name = config.base_model_name_or_path if base is None else os.fspath(base)
    if not name:
        raise ValueError(f"{path / CONFIG} names no base model; give load_graft(folder, base)")
    try:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"the base {name!r} of {path} cannot be opened: {reason(error)}; give base=") from None


def _with_lora(folder: Path, model: Any, trainable: bool) -> Any:
    """The model in the adapter of PEFT that was saved beside the memories."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError(f"{folder} is an adapter of PEFT: pip install 'titans-lab[peft]'") from None
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing, the adapter of PEFT beside the memories; {COPY}")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
