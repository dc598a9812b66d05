"""`GraftedMemory`: one memory beside one attention module, whose output is 0 before training."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from titanslab.graft.structure import NAME, input_of, with_input
from titanslab.memory import MemoryConfig, NeuralMemory, NeuralMemoryState
from titanslab.memory.state import TensorTree

if TYPE_CHECKING:
    from titanslab.graft.handle import Graft


class GraftedMemory(NeuralMemory):
    """A `NeuralMemory` that reads and writes what an attention module reads, by hooks on that module.

    The output projection starts at 0. The base's outputs are then those without the memory, bit by bit, and the
    projection has a gradient from the first step.
    """

    graft: "Graft"

    def __init__(self, hidden_size: int, config: MemoryConfig, graft: "Graft", place: int) -> None:
        super().__init__(hidden_size, **config.to_dict())
        self.__dict__["graft"] = graft  # no submodule
        self.place = place
        self.start()

    @property
    def output_projection(self) -> nn.Linear:
        """The projection that starts at 0."""
        return self.o_proj

    def start(self) -> None:
        """Set the output projection to 0."""
        nn.init.zeros_(self.output_projection.weight)

    def attach(self, attention: nn.Module, placement: str) -> None:
        """Become a child of `attention` and hook its calls."""
        attention.add_module(NAME, self)
        if placement == "mal":
            handle = attention.register_forward_pre_hook(self.before, with_kwargs=True)
        else:
            handle = attention.register_forward_hook(self.after, with_kwargs=True)
        self.__dict__["handle"] = handle

    def detach(self, attention: nn.Module) -> None:
        """The inverse of `attach`."""
        self.__dict__.pop("handle").remove()
        delattr(attention, NAME)

    def read(self, x: Tensor) -> Tensor | None:
        """The memory's output for the tokens `x [B,T,hidden_size]`, in their dtype; None while memories are off."""
        graft = self.graft
        if not graft.enabled or not graft.reads:
            return None
        if hasattr(self.q_proj, "base_layer"):
            raise ValueError(
                "PEFT has put adapters into the memories and has frozen them; call get_peft_model before graft()"
            )
        call = graft.current()
        own = x.to(self.o_norm.dtype)
        y, state, *stats = self.respond(
            own,
            call.state(self.place),
            mask=None if call.mask is None else call.mask.to(x.device),
            learn=call.learn,
            write_scale=call.write_scale if call.learn else 1.0,
            return_stats=call.stats is not None,
        )
        call.keep(self.place, state)
        if call.stats is not None:
            call.stats[self.place] = stats[0] | {"output": y.detach().square().mean(-1).sqrt()}
        return y.to(x.dtype)

    def respond(self, x: Tensor, state: Any, **rules: Any) -> tuple[Any, ...]:
        """The outputs for `x [B,T,hidden_size]` and the new state, and the stats if they are asked for."""
        return self(x, state, **rules)

    def empty(self, rows: int) -> TensorTree:
        """A state of the shapes that a state has."""
        return self.initial_state(rows)

    @staticmethod
    def state_of(tensors: dict[str, Tensor]) -> TensorTree:
        """The state in the tensors of a file."""
        return NeuralMemoryState.from_tensors(tensors)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Placements "mag" and "mac": add the memory's output to that of attention."""
        y = self.read(input_of(args, kwargs))
        if y is None:
            return None
        if isinstance(output, tuple):
            return (output[0] + y, *output[1:])
        return output + y

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Placement "mal": add the memory's output to attention's input."""
        x = input_of(args, kwargs)
        y = self.read(x)
        return None if y is None else with_input(x + y, args, kwargs)
