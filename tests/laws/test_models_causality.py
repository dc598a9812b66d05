"""A later token does not change earlier outputs: bit for bit in float64, for every variant and gate."""

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM

CASES = [("lmm", "mix"), ("mal", "mix"), ("attention", "mix"), ("full", "mix"), ("full_conv", "mix")]
CASES += [(variant, gate) for variant in ("mag", "mac") for gate in ("mix", "sigmoid", "silu")]
LENGTH = 27


def make_model(variant: str, gate: str) -> TitansForCausalLM:
    torch.manual_seed(0)
    variant, _, conv = variant.partition("_")
    window = None if variant == "full" else 6
    config = TitansConfig(
        variant="attention" if variant == "full" else variant, gate_type=gate, vocab_size=31, hidden_size=16,
        num_hidden_layers=2, num_attention_heads=2, memory_expansion=2, chunk_size=4, segment_len=8,
        window_size=window, num_persistent_tokens=3, intermediate_size=32, initializer_range=0.3,
        attention_conv_size=4 if conv else 1,
    )  # fmt: skip
    return TitansForCausalLM(config).double().eval()


def perturbed_from(model, ids: torch.Tensor, position: int, **kwargs) -> torch.Tensor:
    changed = ids.clone()
    changed[:, position] = (changed[:, position] + 1) % 31
    return (model(changed, **kwargs).logits != model(ids, **kwargs).logits).any(dim=2)


@pytest.mark.parametrize(("variant", "gate"), CASES)
@torch.no_grad()
def test_a_token_changes_itself_and_what_follows_only(variant, gate):
    model = make_model(variant, gate)
    ids = torch.randint(0, 31, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    for position in range(LENGTH):
        different = perturbed_from(model, ids, position)
        assert not different[:, :position].any()
        assert different[:, position].all()


@pytest.mark.parametrize(("variant", "gate"), CASES)
@torch.no_grad()
def test_a_document_ends_what_a_token_changes(variant, gate):
    model = make_model(variant, gate)
    ids = torch.randint(0, 31, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    documents = torch.stack((torch.arange(LENGTH) // 10, torch.arange(LENGTH) // 7))
    for position in (0, 3, 9, 10, 13, 20, 26):
        different = perturbed_from(model, ids, position, document_ids=documents)
        allowed = (documents == documents[:, position : position + 1]) & (torch.arange(LENGTH) >= position)
        assert not (different & ~allowed).any()
        assert different[:, position].all()


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac"])
@torch.no_grad()
def test_a_memory_reaches_beyond_window_and_segment(variant):
    model = make_model(variant, "mix")
    ids = torch.randint(0, 31, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    assert perturbed_from(model, ids, 0)[0, -1]


@torch.no_grad()
def test_a_window_of_two_layers_reaches_no_further():
    model = make_model("attention", "mix")
    ids = torch.randint(0, 31, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    different = perturbed_from(model, ids, 0)[0]
    assert different[:11].all()  # two layers with a window of 6 reach positions 0 .. 10
    assert not different[11:].any()
