"""The controls of a graft: each condition against a plain computation, and the words about them."""

import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.llama.configuration_llama import LlamaConfig

from grafted import base, grafted, text
from titanslab.data import byte_tokenizer
from titanslab.evaluation.graft.controls import FULL, OFF, ON, OTHER, WINDOW, Controls, measure_controls
from titanslab.evaluation.graft.documents import longest_documents
from titanslab.evaluation.graft.facts import facts_recalled
from titanslab.evaluation.graft.verdict import gains, verdict, write_controls
from titanslab.tasks.recall.samples import RecallTask

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


def losses(logits, ids):
    return functional.cross_entropy(logits[0, :-1], ids[1:], reduction="none").double().numpy()


def model_with_lora():
    torch.manual_seed(3)
    return grafted(get_peft_model(base(), LORA), window_size=8, num_sink_tokens=2).eval()


@torch.no_grad()
def test_each_condition_is_the_model_that_it_names():
    model = model_with_lora()
    documents = [text(1, 40, seed=5)[0], text(1, 29, seed=6)[0]]
    found = measure_controls(model, [ids.numpy() for ids in documents])
    assert list(found.losses) == [ON, OFF, OTHER, WINDOW, FULL]
    window = grafted(base(), trained=False, window_size=8, num_sink_tokens=2)
    for row, ids in enumerate(documents):
        on = model(ids[None]).logits
        with model.graft.window_alone():
            off = model(ids[None]).logits
        wanted = {ON: on, OFF: off, WINDOW: window(ids[None]).logits, FULL: base()(ids[None]).logits}
        for name, logits in wanted.items():
            scored = found.losses[name][row]
            assert np.isnan(scored[len(ids) - 1 :]).all()
            np.testing.assert_allclose(scored[: len(ids) - 1], losses(logits, ids), atol=1e-5, err_msg=name)
    # each piece of the first document with the memory that the second one has left, up to its end
    with model.graft.window_alone():
        first, other = model.graft.cache(), model.graft.cache()
    for start in (0, 8, 16):
        name, part = model.graft.decoder.cache_name, slice(start, start + 8)
        first.memories = list(other.memories)
        logits = model(documents[0][None, part], **{name: first}).logits
        wanted = functional.cross_entropy(logits[0], documents[0][start + 1 : start + 9], reduction="none").numpy()
        np.testing.assert_allclose(found.losses[OTHER][0, part], wanted, atol=1e-5)
        model(documents[1][None, part], **{name: other})
    assert found.output > 0
    assert 0 < found.write < 1


def test_one_document_and_a_limit_of_full_context():
    found = measure_controls(grafted(base(), window_size=8), [text(1, 30)[0].numpy()], full_context=12)
    assert list(found.losses) == [ON, OFF, WINDOW, FULL]
    assert (~np.isnan(found.losses[FULL])).sum() == 12
    with pytest.raises(ValueError, match="documents must hold one array"):
        measure_controls(grafted(base()), [])
    with pytest.raises(ValueError, match="has no graft"):
        measure_controls(base(), [text(1, 30)[0].numpy()])


@torch.no_grad()
def test_a_graft_without_memories_is_its_window():
    torch.manual_seed(3)
    model = grafted(get_peft_model(base(), LORA), layers="none", window_size=8).eval()
    documents = [text(2, 30)[0].numpy(), text(2, 30)[1].numpy()]
    found = measure_controls(model, documents)
    assert list(found.losses) == [ON, OFF, WINDOW, FULL]
    np.testing.assert_array_equal(found.losses[ON], found.losses[OFF])
    assert np.abs(found.losses[ON] - found.losses[WINDOW]).max() > 1e-3, "LoRA is a part of the first alone"
    logits = model(text(2, 30)[:1]).logits
    np.testing.assert_allclose(found.losses[ON][0], losses(logits, text(2, 30)[0]), atol=1e-5)
    assert verdict(found) == 'This graft has no memory (layers = "none"), only a window.'


@torch.no_grad()
def test_facts_are_right_where_the_likeliest_tokens_are():
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = grafted(AutoModelForCausalLM.from_config(config).eval(), window_size=16)
    task = RecallTask(
        tokenizer,
        "Some words, and others; nobody knows. " * 40,
        num_facts=2,
        value_digits=1,
        template=" {key}={value}.",
    )
    # the output layer prefers one digit everywhere, so that the questions with this value are right
    model.lm_head.weight.zero_()
    model.lm_head.weight[tokenizer("7")["input_ids"][0]] = 1e-6
    for memory in model.graft.memories:
        memory.output_projection.weight.zero_()
    model.model.norm.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    model.lm_head.bias[tokenizer("7")["input_ids"][0]] = 1.0
    found = facts_recalled(model, task, [60], samples=40)
    batch = task.questions(60, 40, 0)
    values = batch.input_ids[batch.answer > 0]
    share = float((values == tokenizer("7")["input_ids"][0]).float().mean())
    assert 0 < share < 1
    assert found == {ON: {60: pytest.approx(share)}, OFF: {60: pytest.approx(share)}}


def controls(output=0.1, write=0.5, tokens=100, **means):
    """Controls whose losses are the given means, with noise that is not the memory's."""
    noise = np.random.default_rng(0).normal(size=(2, tokens))
    values = {"on": 3.0, "off": 3.0, "other": 3.0, "window": 3.0, "full": 3.0} | means
    names = zip((ON, OFF, OTHER, WINDOW, FULL), values.values(), strict=True)
    found = {name: noise + value for name, value in names}
    found[OFF] = found[OFF] + 0.01 * np.sign(noise) * (output > 0.01)  # the memory changes each token a little
    return Controls(20, found, output, write)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"off": 3.2, "other": 3.15, "window": 3.2, "full": 2.7},
            r"The memory is used: .* by 0\.\d+ nats .*; that is 40 % of the way from",
        ),
        ({"output": 1e-6}, "its outputs are near 0 .*graft.gate_ramp"),
        ({"write": 0.001}, "it hardly writes .*graft.theta_bias"),
        ({"off": 3.2}, "another document's memory does so too"),
        ({"window": 3.005}, "these documents gain little from more context"),
        ({"window": 3.4, "off": 2.9, "full": 2.5}, r"it changes the loss by \+0\.1"),
        ({"tokens": 20}, "The documents end within the window of 20 tokens"),
    ],
)
def test_the_verdict_names_the_cause(values, words):
    line = verdict(controls(**values))
    assert "\n" not in line
    assert re.search(words, line), line
    assert line.startswith("The memory is used") == ("used:" in words)


def test_files(tmp_path):
    written = write_controls(controls(off=3.2, window=3.2, full=2.7), tmp_path / "controls.json", "a title", {"a": 1})
    assert all(path.stat().st_size for path in written)
    content = json.loads(written[0].read_text())
    assert content["a"] == 1
    assert content["positions"][ON][0]["first"] == 1
    assert content["over_off"] == pytest.approx(0.2, abs=0.01)
    assert content["closed"] == pytest.approx(0.4, abs=0.01)
    assert gains(controls(tokens=20)) == {"over_off": None, "over_other": None, "room": None, "closed": None}


def test_the_longest_documents():
    texts = ["ab" * n for n in (1, 20, 3, 9, 60)]
    found = longest_documents(iter(texts), byte_tokenizer(), 2, 50)
    assert [len(ids) for ids in found] == [51, len(longest_documents(texts[1:2], byte_tokenizer(), 1, 50)[0])]
    with pytest.raises(ValueError, match="holds no token to predict"):
        longest_documents([], byte_tokenizer(), 2, 50)
