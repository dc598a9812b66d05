"""LMM: the neural memory is the token mixer (paper §3.1, §4.4)."""

from torch import Tensor

from titanslab.models.call import Layout
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer, make_memory
from titanslab.models.state import MixerState


class MemoryMixer(Mixer):
    """`y = M(norm(x))`, each token read right after its own write."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.memory = make_memory(config)

    def forward(
        self, x: Tensor, layout: Layout, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        y, memory = self.memory(
            self.norm(x),
            None if state is None else state.memory,
            mask=layout.mask,
            reset=layout.reset,
            initial=self.document_start(layout, state),
            learn=layout.learn,
            write_scale=layout.write_scale,
        )
        return y, MixerState(memory) if return_state else None
