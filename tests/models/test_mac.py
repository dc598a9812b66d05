"""What MAC writes into its memory."""

import torch

from titanslab.models.config import TitansConfig
from titanslab.models.modeling import TitansForCausalLM


def test_a_mac_whose_attention_is_silent_writes_its_tokens() -> None:
    """With values of zero attention adds nothing: the memory has read the segment's normalised tokens."""
    torch.manual_seed(0)
    config = TitansConfig(
        variant="mac",
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        chunk_size=4,
        segment_len=8,
        num_persistent_tokens=0,
    )
    model = TitansForCausalLM(config).double().eval()
    mixer = model.model.layers[0].mixer
    torch.nn.init.zeros_(mixer.attention.v_proj.weight)
    ids = torch.randint(0, 40, (2, 24))
    with torch.no_grad():
        state = model(ids, use_cache=True).past_key_values.states[0].memory.memory
        tokens = mixer.y_norm(mixer.norm(model.model.embed_tokens(ids)))
        expected = mixer.memory.update(tokens).memory
    for got, wanted in zip(state.weights + state.momentum, expected.weights + expected.momentum, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        assert wanted.abs().max() > 1e-3
