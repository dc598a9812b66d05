"""`training.sharding = "fsdp"`: PyTorch's FSDP2 (`fully_shard`) on the blocks of a model, under the Trainer.

Accelerate turns its own FSDP on for GPUs alone. Here the processes are Accelerate's and the shards PyTorch's, so that a
run is the same on GPUs (NCCL) and on CPUs (gloo), and keeps its checkpoints in this project's files.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn


def shard(model: nn.Module, device: torch.device) -> None:
    """Divide the parameters of a model among all processes, in place: each block is a unit, the rest another.

    Every process gives the same weights, on its own device. The weights of a block are whole while it computes, and its
    gradients until they are summed up; the optimiser sees the rows of this process alone (DTensor).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has divided the parameters of a model."""
    return any(hasattr(parameter, "to_local") for parameter in model.parameters())


def own_rows(tensor: Any) -> slice | None:
    """The rows of a parameter that this process holds; None for one that no process shares.

    FSDP2 divides the first dimension as `torch.chunk` does.
    """
    if not hasattr(tensor, "to_local"):
        return None
    mesh, count = tensor.device_mesh, tensor.shape[0]
    size = -(-count // mesh.size())
    first = min(count, mesh.get_local_rank() * size)
    rows = slice(first, min(count, first + size))
    assert tensor.to_local().shape[0] == rows.stop - rows.start, "a division other than that of torch.chunk"
    return rows


def shard_like(local: Tensor, parameter: Any) -> Tensor:
    """A tensor in the shape of a sharded parameter whose rows in this process are `local`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of a sharded model on the CPU of the first process; empty in the others. All must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (first := names.setdefault(id(parameter), name)) != name and name in weights:
            weights[name] = weights[first]  # tied, so that they are saved once
    return weights


def check_launcher() -> None:
    """ValueError where accelerate's own FSDP is on, whose checkpoints are other files."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "the config of accelerate launch turns on accelerate's FSDP (distributed_type: FSDP), and a recipe chooses "
            'its own with training.sharding = "fsdp"; use a config with distributed_type: MULTI_GPU, or torchrun'
        )
