"""Odd shapes and values of a model's and a layer's arguments: right, or an error that names the argument."""

import pytest
import torch

from titanslab import NeuralMemory, TitansConfig, TitansForCausalLM

VARIANTS = ("lmm", "mal", "mag", "mac", "attention")
IDS = torch.zeros(2, 9, dtype=torch.int64)


def model(variant):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"chunk_size": 4, "segment_len": 8, "num_persistent_tokens": 2, "window_size": 4}
    return TitansForCausalLM(TitansConfig(variant=variant, **sizes, **more))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_batch(variant):
    network = model(variant)
    for ids in (IDS[:0], IDS[:0, :1]):
        output = network.eval()(ids)
        assert output.logits.shape == (*ids.shape, 64)
        network.train()(ids, labels=ids, document_ids=ids).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_of_any_dtype_and_rows_of_padding_alone(variant):
    network = model(variant).eval()
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :5] = 0
    with torch.no_grad():
        want = network(IDS, attention_mask=mask).logits
        for dtype in (torch.bool, torch.int32, torch.float32):
            assert torch.equal(network(IDS, attention_mask=mask.to(dtype)).logits, want)
        assert network(IDS, attention_mask=torch.zeros_like(mask)).logits.isfinite().all()


WRONG = {
    "one row": ({"input_ids": IDS[0]}, r"input_ids must be int64 \[B, T\], got \[9\].*unsqueeze"),
    "four dimensions": ({"input_ids": IDS[None]}, r"input_ids must be int64 \[B, T\], got \[1, 2, 9\]"),
    "floats": ({"input_ids": IDS.float()}, r"input_ids must be int64 .* torch\.float32"),
    "a list": ({"input_ids": [[1, 2]]}, "input_ids must be int64 .* got list"),
    "no tokens": ({"input_ids": IDS[:, :0]}, "at least one token"),
    "above the vocabulary": ({"input_ids": IDS + 64}, r"vocabulary 0\.\.63, got 64\.\.64"),
    "below it": ({"input_ids": IDS - 1}, r"vocabulary 0\.\.63, got -1\.\.-1"),
    "embeddings of one row": ({"inputs_embeds": torch.zeros(9, 32)}, r"inputs_embeds must have shape \[B, T, 32\]"),
    "narrow embeddings": ({"inputs_embeds": torch.zeros(2, 9, 31)}, r"inputs_embeds .* got \[2, 9, 31\]"),
    "wide embeddings": ({"inputs_embeds": torch.zeros(2, 9, 32).double()}, r"inputs_embeds is torch\.float64"),
    "labels": ({"input_ids": IDS, "labels": IDS[:, 1:]}, r"labels must have shape \[2, 9\] .* got \[2, 8\]"),
    "a mask of scores": ({"input_ids": IDS, "attention_mask": torch.zeros(2, 1, 9, 9)}, "attention_mask must have"),
    "a list as cache": ({"input_ids": IDS, "past_key_values": [1]}, "past_key_values must be a TitansCache, got list"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("variant", VARIANTS)
def test_wrong_arguments_of_a_model_are_named(variant, case):
    arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        model(variant)(**arguments)


X = torch.randn(2, 9, 32)
FLAGS = torch.ones(2, 9)
LAYER = {
    "x of one row": ({"x": X[0]}, r"x must have shape \[B, T, 32\] \(hidden_size\), got \[9, 32\]"),
    "a narrow x": ({"x": X[..., 1:]}, r"x must have shape .* got \[2, 9, 31\]"),
    "whole numbers": ({"x": X.long()}, r"x is torch\.int64, the layer torch\.float32"),
    "a wide x": ({"x": X.double()}, r"x is torch\.float64, the layer torch\.float32; cast"),
    "a list": ({"x": [[1.0]]}, "x must be a tensor .* got list"),
    "a float mask": ({"x": X, "mask": FLAGS}, "mask must be bool or whole numbers"),
    "a short mask": ({"x": X, "mask": FLAGS[:, 1:].bool()}, r"mask must have shape \[2, 9\] .* got \[2, 8\]"),
    "a short reset": ({"x": X, "reset": FLAGS[:, :1].bool()}, r"reset must have shape \[2, 9\]"),
    "long lengths": ({"x": X, "lengths": torch.tensor([99, 3])}, r"lengths must be from 0 to 9, .* got 3\.\.99"),
    "negative lengths": ({"x": X, "lengths": torch.tensor([-1, 3])}, r"lengths must be from 0 to 9"),
    "a list of lengths": ({"x": X, "lengths": [3, 2]}, r"lengths must be int64 \[2\], got list"),
    "no state": ({"x": X, "state": (1, 2)}, "state must be a NeuralMemoryState, .* got tuple"),
    "start of three": ({"x": X, "initial": NeuralMemory(32, 2).initial_state(3)}, "initial holds 3 rows, x has 2"),
    "other heads": ({"x": X, "state": NeuralMemory(32, 4).initial_state(2)}, r"state\.weights\[0\] must have shape"),
    "other depth": ({"x": X, "state": NeuralMemory(32, 2, depth=3).initial_state(2)}, "state.weights must hold 2"),
    "other taps": ({"x": X, "state": NeuralMemory(32, 2, conv_size=3).initial_state(2)}, r"state\.conv\['q'\] must"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", LAYER)
def test_wrong_arguments_of_a_layer_are_named(case, training):
    arguments, message = LAYER[case]
    torch.manual_seed(0)
    layer = NeuralMemory(32, 2, chunk_size=4)
    with torch.set_grad_enabled(training), pytest.raises(ValueError, match=message):
        layer(**arguments)


def test_masks_of_whole_numbers_are_taken_by_a_layer():
    layer = NeuralMemory(32, 2, chunk_size=4)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :5] = 0
    want = layer(X, mask=mask.bool(), reset=mask.bool())[0]
    assert torch.equal(layer(X, mask=mask, reset=mask)[0], want)


def test_the_arguments_of_a_layer_are_named_when_it_is_made():
    with pytest.raises(TypeError, match=r"NeuralMemory\(\) missing .* 'num_heads'"):
        NeuralMemory(64)
    with pytest.raises(TypeError, match=r"NeuralMemory\(\) got an unexpected keyword argument 'head'"):
        NeuralMemory(64, 2, head=3)
    for size in (0, "64", 64.0):
        with pytest.raises(ValueError, match="hidden_size must be an integer of at least 1"):
            NeuralMemory(size, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": IDS + 64}, r"labels must be -100 or within the vocabulary 0..63, got 64..64"),
        ({"labels": IDS - 1}, r"labels must be -100 or within the vocabulary 0..63, got -1..-1"),
        ({"labels": IDS.int()}, r"labels must be int64, got torch.int32"),
        ({"labels": IDS.tolist()}, r"labels must have shape \[2, 9\] like the tokens, got list"),
        ({"labels": IDS, "logits_to_keep": 3}, r"labels need the logits of all tokens, and logits_to_keep"),
        ({"attention_mask": (IDS - 1) * 1e9}, r"attention_mask has numbers below 0, as a mask that is added"),
        ({"attention_mask": IDS.tolist()}, r"attention_mask must be a tensor \[2, 9\], got list"),
        ({"document_ids": IDS.tolist()}, r"document_ids must have shape \[2, 9\] like the tokens, got list"),
        ({"seq_idx": IDS}, r"seq_idx is not an argument of Titans models; pass document_ids"),
        ({"cu_seq_lens_q": IDS[0]}, r"cu_seq_lens_q is not an argument of Titans models"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        model("lmm")(IDS, **arguments)
