"""The fused ops under torch.compile, and the kernels compiled for a Hopper GPU, which need not be present."""

import subprocess
import sys

import pytest
import torch
from memory_cases import Case, distance, make
from triton_cases import DEVICE, on_device

import titanslab.memory.gpu.op as fused_op
from compiling import whole_graphs
from titanslab.memory import neural_memory

pytest.importorskip("triton", reason="Triton exists for Linux only", exc_type=ImportError)

CASE = Case(batch=1, heads=1, head_dim=16, chunk_size=16, tokens=16, depth=1, dtype=torch.float32)


@pytest.mark.parametrize("changes", [{}, {"state": True, "mask": True}], ids=["aligned", "ragged"])
def test_compiled_is_eager(changes: dict) -> None:
    def run(compiled: bool):
        problem = on_device(make(CASE.with_(**changes)))
        names = ("q", "k", "v", "theta", "eta", "alpha")

        def call(*leaves):
            y, state = neural_memory(
                *leaves, problem.network, problem.params, problem.state, 16, "triton", mask=problem.mask
            )
            return y.square().sum() + state.weights[0].sum() + state.chunk_weights[0].square().sum()

        if compiled:
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        with whole_graphs():
            loss = call(*(problem.leaves[n] for n in names))
        return loss, torch.autograd.grad(loss, [problem.leaves[n] for n in names])

    (want, want_grads), (got, got_grads) = run(False), run(True)
    assert distance(got, want) < 1e-6
    for a, b in zip(got_grads, want_grads, strict=True):
        assert distance(a, b) < 1e-6


def test_ops_describe_themselves() -> None:
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(DEVICE)

    q, gates, state = (normal(1, 16, 1, 16), torch.rand(3, 1, 1, 16, 1, generator=g).to(DEVICE), normal(1, 32, 16))
    rest = ([], [state], [normal(1, 16), normal(1, 16)], None, None, None)
    forward = (q, q, q, gates, [state], *rest, 16, True, None)
    torch.library.opcheck(fused_op.fused_memory, forward, test_utils=checks)
    *_, kept = fused_op.fused_memory(*forward)
    running = [torch.zeros(1, 16, 16, device=DEVICE)]
    odd = [t[:, :13] for t in (q, q, q)] + [gates[:, :, :, :13]]
    torch.library.opcheck(fused_op.fused_memory, (*odd, [state], *rest, 4, True, None), test_utils=checks)
    backward = (q, [state], running, q, q, q, gates, *rest, kept, 16, True, None)
    torch.library.opcheck(fused_op.fused_memory_backward, backward, test_utils=checks)
    rest[2].append(normal(1, 16, 16))  # to which the memory forgets
    torch.library.opcheck(fused_op.fused_memory, forward, test_utils=checks)
    torch.library.opcheck(fused_op.fused_memory_backward, backward, test_utils=checks)
    weights = [normal(1, 1, 16, 16)]
    offset = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    step = (q[:, 0], q[:, 0], q[:, 0], gates[:, :, :, 0], weights, weights, weights, [], rest[2], offset)
    torch.library.opcheck(fused_op.fused_memory_step, (*step, None, None, 16, True, None), test_utils=checks)


HOPPER = '''
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from titanslab.memory.gpu import passes, plan, step
from titanslab.memory.network import MemoryNetwork

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1"}

def kind(x):
    return NAMES[x.dtype] if isinstance(x, torch.Tensor) else "i32" if isinstance(x, int) else "fp32"

class Compiled:
    """Stands for a kernel: a launch compiles it instead."""
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        def launch(*args, num_warps=4, num_stages=2, **shapes):
            names = self.kernel.arg_names
            signature = dict(zip(names, map(kind, args))) | dict.fromkeys(shapes, "constexpr")
            assert set(signature) == set(names), set(names) ^ set(signature)
            constants = {(names.index(n),): v for n, v in shapes.items()}
            source = ASTSource(self.kernel, signature, constants)
            options = {"num_warps": num_warps, "num_stages": num_stages}
            built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            assert built.metadata.shared <= 227 * 1024, built.metadata.shared
            print(self.kernel.__name__, "compiled")
        return launch

for name in ("state_forward", "read_forward", "read_backward", "state_backward"):
    setattr(passes, name, Compiled(getattr(passes, name)))
step.memory_step = Compiled(step.memory_step)
form, width, hidden, rows = MemoryNetwork(grad_clip=0.5), 16, 32, 2
state = [torch.zeros(rows, 2 * width, hidden), torch.zeros(rows, 2 * hidden, width)]
anchor = [s[:, : s.shape[1] // 2].contiguous() for s in state]
norm = [torch.ones(rows, width)] * 2
q, gates = torch.zeros(1, 32, rows, width, dtype=torch.bfloat16), torch.rand(3, 2, 1, 32, rows)
offset, mask = torch.ones(1, dtype=torch.int64), torch.ones(1, 32, dtype=torch.bool)
tiles = plan.make_plan(2, width, hidden, 16, 32, torch.bfloat16)
for base in ([], anchor):
    arguments = (anchor, state, norm, base, offset, mask, None)
    *_, running, kept = passes.forward(q, q, q, gates, state, *arguments, 16, form, tiles)
    passes.backward(q, state, running, q, q, q, gates, *arguments, kept, 16, form, tiles)
    weights = [a[None] for a in anchor]
    step.step(q[:, 0], q[:, 0], q[:, 0], gates[:, :, :, 0], weights, weights, weights, weights * 2, norm, base,
                offset, mask[:, 0], mask[:, 0], 16, form)
'''


def test_kernels_compile_for_hopper(tmp_path) -> None:
    # a new process, because this one may use the interpreter
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", HOPPER], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split("\n")[:-1] == 2 * [
        f"{kernel} compiled"
        for kernel in (
            "state_forward",
            "read_forward",
            "state_forward",
            "read_backward",
            "state_backward",
            "memory_step",
        )
    ]
