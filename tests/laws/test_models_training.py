"""Every parameter has a gradient; checkpointing and compilation do not change it; extreme gates keep it finite."""

import pytest
import torch

from compiling import whole_graphs
from titanslab import TitansConfig, TitansForCausalLM
from titanslab.memory import NeuralMemory

VARIANTS = ["lmm", "mal", "mag", "mac", "attention", "attention_conv"]
SMALL = dict(
    vocab_size=31, hidden_size=16, num_attention_heads=2, memory_expansion=2, chunk_size=4, segment_len=8,
    window_size=6, num_persistent_tokens=3, intermediate_size=32,
)  # fmt: skip


def make(variant: str, layers: int = 2, **overrides) -> TitansForCausalLM:
    torch.manual_seed(0)
    variant, _, conv = variant.partition("_")
    config = TitansConfig(
        variant=variant, num_hidden_layers=layers, attention_conv_size=4 if conv else 1, **(SMALL | overrides)
    )
    return TitansForCausalLM(config).train()


def tokens(length: int = 19) -> torch.Tensor:
    return torch.randint(0, 31, (2, length), generator=torch.Generator().manual_seed(0))


def gradients(model, ids: torch.Tensor, **kwargs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(ids, labels=ids, **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gate", ["mix", "sigmoid", "silu"])
def test_every_parameter_gets_a_gradient(variant, gate):
    if gate != "mix" and variant not in ("mag", "mac"):
        return
    model = make(variant, gate_type=gate, tie_word_embeddings=False)
    found = gradients(model, tokens())
    for name, parameter in model.named_parameters():
        assert name in found, name
        assert found[name].isfinite().all(), name
        assert (found[name] != 0).any(), name
        assert found[name].shape == parameter.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_documents_padding_and_pieces_give_the_gradients_of_separate_runs(variant):
    """Compares packed and padded rows of each mixer with separate calls, in float64."""
    model, ids = make(variant).double(), tokens(23)
    documents = torch.stack((torch.arange(23) // 9, torch.arange(23) // 23))
    mask = torch.ones(2, 23, dtype=torch.int64)
    mask[1, :6] = 0
    weights = torch.randn(2, 23, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    packed = (model(ids, attention_mask=mask, document_ids=documents).logits * weights)[mask.bool()].sum()
    pieces = [(0, 0, 9), (0, 9, 18), (0, 18, 23), (1, 6, 23)]
    apart = sum((model(ids[r : r + 1, a:b]).logits * weights[r : r + 1, a:b]).sum() for r, a, b in pieces)
    torch.testing.assert_close(packed, apart, atol=1e-9, rtol=0)
    parameters = list(model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(packed, parameters), torch.autograd.grad(apart, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_changes_nothing(variant):
    model, ids = make(variant), tokens()
    plain = gradients(model, ids)
    model._set_gradient_checkpointing(
        True, lambda fn, *args: torch.utils.checkpoint.checkpoint(fn, *args, use_reentrant=False)
    )
    assert model.is_gradient_checkpointing
    calls = []
    model.model.layers[0].mixer.register_forward_hook(lambda *_: calls.append(1))
    again = gradients(model, ids)
    assert len(calls) == 2  # in forward, and again for backward
    assert all(torch.equal(again[name], plain[name]) for name in plain)


# dynamo reads the .grad of a block's input, which is not a leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_compile_without_graph_breaks(variant):
    model, ids = make(variant, layers=1), tokens(16)
    plain = gradients(model, ids)
    torch._dynamo.reset()
    for block in model.model.layers:
        block.compile(fullgraph=True, backend="aot_eager")
    with whole_graphs():
        compiled = gradients(model, ids)
    for name, gradient in compiled.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5, msg=name)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("variant", ["lmm", "mac"])  # the test of single blocks above covers the other variants
def test_a_whole_model_compiles(variant):
    model, ids = make(variant, layers=1).eval(), tokens(7)
    plain = model(ids, labels=ids, use_cache=False)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")(ids, labels=ids, use_cache=False)
    torch.testing.assert_close(compiled.logits, plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compiled.loss, plain.loss, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac"])
@pytest.mark.parametrize("extreme", [-30.0, 30.0])
def test_gates_at_their_extremes_over_32k_tokens(variant, extreme):
    """With saturated gates (alpha 0 or 1, largest theta) outputs and gradients have no NaN."""
    model = make(variant, layers=1, chunk_size=64, segment_len=512, window_size=64, memory_expansion=1)
    for memory in (m for m in model.modules() if isinstance(m, NeuralMemory)):
        for gate, sign in ((memory.theta_proj, 1), (memory.eta_proj, 1), (memory.alpha_proj, -1)):
            torch.nn.init.constant_(gate.bias, sign * extreme)
    ids = torch.randint(0, 31, (1, 32768), generator=torch.Generator().manual_seed(0))
    found = gradients(model, ids)
    assert all(g.isfinite().all() for g in found.values())


def test_training_lowers_the_loss():
    model, ids = make("mac"), tokens(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
