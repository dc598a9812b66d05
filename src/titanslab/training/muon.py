"""Muon for the matrices of the trunk, AdamW for the rest, as one optimiser.

`torch.optim.Muon` iterates in bfloat16, which takes seconds a step on a CPU without bfloat16 instructions, and the
Trainer takes one optimiser. Source: Jordan et al., 2024 (Muon); Liu et al., 2025 (steps of AdamW's size).
"""

from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that moves singular values to about 1 (Jordan et al.)
_STEPS = 5  # iterations of the quintic
_LIKE_ADAMW = 0.2  # root mean square of the entries of AdamW's steps (Liu et al.)
MIN_SIDE = 32  # a projection to fewer features, such as a gate, keeps AdamW


class MuonWithAdamW(torch.optim.AdamW):
    """AdamW; the steps of `matrices` are their orthogonalised momentum, at AdamW's size, so that one rate serves both.

    Args:
        groups: groups of parameters, as for `torch.optim.AdamW`; `matrices` are taken out of them.
        matrices: 2-D parameters; decayed by `weight_decay`.
        momentum: of the matrices, with Nesterov's look ahead.
        others: `lr`, `betas`, `eps` and `weight_decay`, as for `torch.optim.AdamW`.
    """

    def __init__(
        self, groups: list[dict[str, Any]], matrices: list[nn.Parameter], *, momentum: float = 0.95, **others: Any
    ) -> None:
        taken = set(map(id, matrices))
        rest = [g | {"params": [p for p in g["params"] if id(p) not in taken], "matrices": False} for g in groups]
        super().__init__([*rest, {"params": matrices, "matrices": True, "momentum": momentum}], **others)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters; `closure` as in `torch.optim.AdamW`."""
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group["matrices"]]
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in (group for group in every if group["matrices"]):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_matrix(parameter, group)
        return loss

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW.load_state_dict reads this of every parameter
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(state["mean"], group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        size = group["lr"] * _LIKE_ADAMW * max(parameter.shape) ** 0.5
        parameter.add_(orthogonalised(ahead).to(parameter.dtype), alpha=-size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix `[m, n]` with all singular values moved to about 1, in float32 (Newton-Schulz)."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).float()
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def matrix_names(model: nn.Module) -> set[str]:
    """Names of the weights that Muon updates: those of linear maps between features, without the output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tied = None if head is None else head.weight
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight is not tied and min(module.weight.shape) >= MIN_SIDE
    }
