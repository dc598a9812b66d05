"""`StateLayer`: the state of a layer of the base without attention, such as a short convolution or a linear recurrence.

Older versions of transformers give such layers no mask of their own. `STATES_ARE_KEPT` is False there: a base that has
such layers keeps the cache of transformers, and gets no window.
"""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from transformers import cache_utils, masking_utils

KINDS = ("conv_states", "recurrent_states")
_BASE: Any = getattr(cache_utils, "LinearAttentionLayer", None)
STATES_ARE_KEPT = _BASE is not None and hasattr(masking_utils, "create_recurrent_attention_mask")


class StateLayer(_BASE if STATES_ARE_KEPT else object):  # type: ignore[misc]
    """The states of one layer, which no call of `update_...` writes in place.

    A call of one token may write them in place in a kernel of transformers, so that a copy has its own tensors.
    """

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """As in transformers: the newest inputs of a convolution stay, and all that it sees are returned."""
        self._renew(self.conv_states, state_idx)
        found: Tensor = super().update_conv_state(conv_states, state_idx, **kwargs)
        return found

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """As in transformers: the state of a recurrence is replaced."""
        self._renew(self.recurrent_states, state_idx)
        found: Tensor = super().update_recurrent_state(recurrent_states, state_idx, **kwargs)
        return found

    @staticmethod
    def _renew(held: dict[int, Tensor | None], place: int) -> None:
        """Put a copy in the place of a tensor that transformers is about to write, and that a graph may need."""
        if (state := held[place]) is not None:
            held[place] = state.clone()

    def copy(self) -> Self:
        """A layer of the same content with tensors of its own."""
        new = copy.copy(self)
        new.__dict__.update({name: dict(value) for name, value in vars(self).items() if isinstance(value, dict)})
        new.map(Tensor.clone)
        return new

    def map(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Replace each tensor by that which `fn` makes of it."""
        for kind in KINDS:
            held = getattr(self, kind)
            held.update({place: fn(state) for place, state in held.items() if state is not None})

    def tensors(self) -> dict[str, Tensor]:
        """Names such as `conv_states.0` to tensors."""
        held = ((f"{kind}.{place}", state) for kind in KINDS for place, state in getattr(self, kind).items())
        return {name: state for name, state in held if state is not None}

    def fill(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        """The inverse of `tensors`, for a layer that holds nothing in a base of that dtype."""
        for name, held in tensors.items():
            kind, _, place = name.partition(".")
            state = held.to(dtype) if kind == KINDS[0] else held  # recurrences may be more precise than the base
            self.lazy_initialization(**{kind: state}, state_idx=int(place))
            getattr(self, kind)[int(place)] = state
            if kind == KINDS[0]:
                self.has_previous_state[int(place)] = True


def state_layer(layer: Any) -> Any:
    """A `StateLayer` in the place of a new layer of a cache that has states alone; any other layer stays."""
    return StateLayer(layer.number_of_states) if STATES_ARE_KEPT and type(layer) is _BASE else layer


def has_states_alone(layer: Any) -> bool:
    """Whether a layer of a cache holds no keys, but states that a `StateLayer` can hold."""
    return STATES_ARE_KEPT and isinstance(layer, _BASE) and not hasattr(layer, "keys")
