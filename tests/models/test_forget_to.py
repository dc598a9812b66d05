"""Models whose memories forget to their start: read in pieces and with padding as whole, trained, and told apart."""

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM


def small(variant: str, **changes) -> TitansForCausalLM:
    sizes = dict(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, memory_expansion=2, segment_len=16,
        window_size=6, num_persistent_tokens=3, intermediate_size=32, memory_half_lives=(2.0, 9.0),
    )  # fmt: skip
    torch.manual_seed(0)
    return TitansForCausalLM(TitansConfig(variant=variant, **sizes | changes)).double().eval()


@pytest.mark.parametrize("chunk_size", [4, 16])
@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_pieces_and_rows_are_those_of_the_whole(variant, chunk_size):
    model = small(variant, chunk_size=chunk_size, memory_forget_to="start")
    ids = torch.randint(0, 31, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        cache, found = None, []
        for start, end in ((0, 7), (7, 8), (8, 40), (40, 41), (41, 50)):
            output = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
        torch.testing.assert_close(torch.cat(found, 1), whole)
        padded = torch.cat((torch.zeros(2, 5, dtype=torch.int64), ids), 1)
        mask = torch.cat((torch.zeros(2, 5), torch.ones(2, 50)), 1)
        torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 5:], whole)
        other = small(variant, chunk_size=chunk_size)
        other.load_state_dict(model.state_dict())
        assert (other(ids).logits - whole).abs().max() > 1e-6


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_the_gradients_of_training_are_those_of_the_token_loop(variant):
    """The fast ways of training against the backend that goes token by token."""
    ids = torch.randint(0, 31, (2, 48), generator=torch.Generator().manual_seed(0))
    grads = []
    for backend in ("auto", "recurrent"):
        model = small(variant, chunk_size=16, memory_forget_to="start", memory_backend=backend).train()
        model(ids, labels=ids).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-9, rtol=1e-6, msg=name)
