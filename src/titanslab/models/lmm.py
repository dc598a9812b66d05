"""LMM: the neural memory is the token mixer (paper §3.1, §4.4)."""

from torch import Tensor

from titanslab.models.call import Call
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState, Update


class MemoryMixer(Mixer):
    """`y = M(norm(x))`, each token read right after its own write."""

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        y, memory = self.remember(self.norm(x), call, state)
        return y, MixerState(memory) if return_state else None
