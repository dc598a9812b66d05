"""Stop a run whose loss, gradient or weights are not finite, and name the first layer that is not."""

import re
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_WRAPPERS = re.compile(r"(_orig_mod|(_fsdp_wrapped_|_checkpoint_wrapped_)?module)\.")
ADVICE = (
    "Training stopped. Try a lower training.learning_rate, more training.warmup_steps, a smaller "
    "training.gradient_clip or training.weight_decay, or fp32"
)


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a weight is NaN or infinite; the message names the step, the layer and changes to try."""


def check_step(
    model: nn.Module, loss: Tensor, inputs: Mapping[str, Any], step: int, *, gradients: bool = True
) -> Tensor | None:
    """Raise NonFiniteError if the loss or a gradient is not finite; called after backward, before clipping.

    To find the layer, the forward pass runs once more on `inputs`: the error names the first layer, in forward order,
    whose output is not finite. If all outputs are finite, it names the layer nearest to the loss whose gradient is
    not, as backward reaches that one first. A healthy step costs one synchronisation with the device.
    Of several processes all raise where one has a reason.

    Returns the norm of each gradient, in the order of the parameters that have one; None without `gradients`.
    """
    norms = None
    finite = torch.isfinite(loss.detach()).all()
    grads = [local_part(p.grad) for p in model.parameters() if p.grad is not None] if gradients else []
    grads = [grad for grad in grads if grad.numel()]
    if grads:
        norms = torch.stack([norm.to(loss.device, torch.float64) for norm in torch._foreach_norm(grads)])
        finite = finite & torch.isfinite(norms).all()
    if not _in_any_process(~finite):
        return norms
    raise NonFiniteError(
        f"step {step}: the {'loss' if not torch.isfinite(loss).all() else 'gradient'} is not finite; "
        f"{_where(model, inputs)}. {ADVICE}"
    )


def check_weights(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError if a parameter is not finite after `step`; called before the model is saved."""
    parameters = _bad_parameters(model, "after")
    if _in_any_process(bool(parameters)):
        raise NonFiniteError(f"step {step}: {parameters or 'a parameter is not finite in another process'}. {ADVICE}")


def _in_any_process(found: Tensor | bool) -> bool:
    """Whether any process has found something: all raise together, as one that waits for the others would hang."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return bool(found)
    device = PartialState().device
    flag = torch.as_tensor(found, device=device).to(torch.float32)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _bad_parameters(model: nn.Module, when: str) -> str:
    """The first parameter that is not finite before or after the step, in words; "" if there is none."""
    bad = [parameter_name(name) for name, p in model.named_parameters() if not _all_finite(p.data)]
    return f"parameter {bad[0]} is not finite {when} the step ({len(bad)} such parameters)" if bad else ""


def _where(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    if parameters := _bad_parameters(model, "before"):
        return parameters
    if layer := first_bad_activation(model, inputs):
        return f"first layer with an output that is not finite: {layer}"
    if bad := [
        parameter_name(n) for n, p in model.named_parameters() if p.grad is not None and not _all_finite(p.grad)
    ]:
        return f"outputs are finite; the first gradient, from the loss down, that is not: {bad[-1]}"
    return "all parameters, outputs and gradients are finite here when computed again"


def first_bad_activation(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """The first module to return an output that is not finite, or None."""
    found: list[str] = []

    def check(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        tensors = (t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point())
        if not found and not all(map(_all_finite, tensors)):
            found.append(parameter_name(name) or "the model")

    handles = [module.register_forward_hook(partial(check, name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a MAC block warns of hooks that it never calls
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _all_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(local_part(tensor)).all())


def local_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process has, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def parameter_name(name: str) -> str:
    """The name of a parameter or module without those of its wrappers."""
    return _WRAPPERS.sub("", name)
