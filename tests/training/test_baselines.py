"""Models of transformers as baselines: from a recipe to a run, resumed, asked, refused where they cannot work."""

import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from titanslab.cli import main
from titanslab.data import byte_tokenizer
from titanslab.evaluation import perplexity
from titanslab.evaluation.decode import GreedyAnswerer
from titanslab.memory import NeuralMemory
from titanslab.runs.loading import load_model
from titanslab.training import trainer
from titanslab.training.model import build_model
from titanslab.training.recipe import load_recipe, parse_recipe
from titanslab.training.run import train

LLAMA = {"architecture": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "tie_word_embeddings": True}
DELTA = {"architecture": "qwen3_next", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
DELTA |= {"num_experts": 0, "layer_types": ["linear_attention"] * 2, "linear_num_key_heads": 2}
DELTA |= {
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "tie_word_embeddings": True,
}
MODELS = {"llama": LLAMA, "qwen3_next": DELTA}


def table(model, **data):
    options = {"min_length": 380, "curriculum_rows": 6, "same_length_rows": 2}
    return {
        "model": dict(MODELS[model]),
        "data": {"task": "niah", "sequence_length": 448, "task_options": options, **data},
        "training": {"steps": 6, "batch_size": 2, "warmup_steps": 1, "log_every": 1, "save_every": 2, "cpu": True},
    }


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in found]


def titans(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", MODELS)
def test_trained_stopped_resumed_counted_and_asked(name, tmp_path, monkeypatch, capsys):
    recipe = parse_recipe(table(name))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = train(recipe, whole)
    logged = lines(whole)
    assert 6 * 2 * 380 <= result["tokens"] < 6 * 2 * 448  # rows are as long as drawn
    assert logged[-1]["tokens"] == result["tokens"]
    assert len({b["tokens"] - a["tokens"] for a, b in itertools.pairwise(logged)}) > 2
    assert load_recipe(whole / "recipe.toml") == recipe

    plain = trainer.TitansTrainer.training_step

    def failing(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise Stopped
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.TitansTrainer, "training_step", failing)
        with pytest.raises(Stopped):
            train(recipe, stopped)
    resumed = train(recipe, stopped, resume=True)
    assert resumed["resumed_from"] == 2
    assert resumed["tokens"] == result["tokens"]
    assert lines(stopped) == logged

    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(whole).parameters())
    for place in (whole, whole / "recipe.toml"):
        assert titans("info", "--config", place) == 0
        assert f"{name}, {count:,} parameters" in capsys.readouterr().out
    shape = ("--lengths", "640", "--samples", "2", "--max-new-tokens", "3")
    assert titans("evaluate", "niah", "--model", whole, *shape) == 0
    answers = (whole / "evaluation" / "niah" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in answers] == [0, 1]
    assert titans("evaluate", "niah", "--model", whole, "--no-learn", "--output", tmp_path / "off", *shape) != 0
    assert "this model has none" in capsys.readouterr().err


def test_recurrent_models_read_in_pieces_and_in_batches_as_alone():
    model = build_model(parse_recipe(table("qwen3_next")), byte_tokenizer()).double().eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)  # tied: answers that differ by prompt
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 256, (size,), generator=generator).tolist() for size in (150, 41, 97)]
    alone = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        alone.append(ids[len(prompt) :])
    assert len({tuple(answer) for answer in alone}) == 3
    for piece in (7, 64, 1000):
        read = []
        answer = GreedyAnswerer(model, max_new_tokens=6, piece=piece, pad_token_id=258)
        assert answer(prompts, read.append) == alone
        assert sum(read) == 3 * 150


def started(start):
    torch.manual_seed(0)
    recipe = table("qwen3_next")
    recipe["model"] |= {"hidden_size": 64, "linear_key_head_dim": 32, "linear_value_head_dim": 24, "start": start}
    return [layer.linear_attn for layer in build_model(parse_recipe(recipe), byte_tokenizer()).model.layers]


def test_a_gated_deltanet_starts_as_its_authors_let_it():
    for layer in started("authors"):
        steps = torch.nn.functional.softplus(layer.dt_bias)
        assert bool(((steps > 0.99e-3) & (steps < 0.101)).all())


@torch.no_grad()
def test_a_gated_deltanet_starts_to_recall():
    """Heads keep what they hold, queries and keys are of one kind, a key is made of the tokens before its own."""
    for layer in started("recall"):
        rates = layer.A_log.exp() * torch.nn.functional.softplus(layer.dt_bias)
        torch.testing.assert_close(
            torch.log(torch.tensor(2.0)) / rates, torch.tensor([2.0**14, 2.0**20]), rtol=1e-3, atol=0
        )
        projected = torch.randn(1, 3, 64) @ layer.in_proj_qkvz.weight.T
        q, k, v, *_ = layer.fix_query_key_value_ordering(projected, torch.zeros(1, 3, 4))
        assert torch.equal(q, k)
        assert 0.5 < float(k.std()) < 2
        assert 0.5 < float(v.std()) < 2
        q, k, v = layer.conv1d.weight[:, 0].split([64, 64, 48])
        assert float((q[:, 1:] - k[:, :-1]).abs().max()) < 0.2  # the last tap is that of the newest token
        assert float(q[:, 1:].std()) > 0.3
        assert float(k[:, -1].abs().max()) < 0.2
        assert float((v[:, -1] - 1).abs().max()) < 0.4


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "llama", "start": "fast"}, r"model\.start is 'fast'; allowed: authors, recall|did you mean"),
        ({"start": "recall"}, r"model\.start = 'recall' needs model\.architecture"),
        ({"architecture": "lama"}, r"architecture is 'lama'; .*; did you mean 'llama'\?"),
        ({"architecture": "llama", "preset": "tiny"}, r"model\.preset = 'tiny' cannot take effect together"),
        ({"architecture": "llama", "variant": "mac"}, r"model\.variant = 'mac' cannot take effect together"),
        ({"architecture": "llama", "pretrained": "x"}, r"model\.architecture = 'llama' cannot take effect"),
        ({"architecture": "llama", "hiden_size": 8}, r"'hiden_size' in \[model\]; did you mean 'hidden_size'"),
        ({"architecture": "llama", "segment_len": 8}, r"unknown key 'segment_len' in \[model\]"),
    ],
)
def test_wrong_architectures_and_keys_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe({"model": model, "data": {"train": "a.txt"}})


def test_what_a_config_refuses_takes_one_line():
    recipe = parse_recipe({"model": {**LLAMA, "hidden_size": "wide"}, "data": {"train": "a.txt"}})
    with pytest.raises(ValueError, match=r"\[model\] of architecture 'llama': .*hidden_size") as error:
        build_model(recipe, byte_tokenizer())
    assert "\n" not in str(error.value)


def test_rows_of_several_documents_are_refused(text_file, tmp_path):
    text = {"train": str(text_file), "sequence_length": 64, "text_documents": "line"}
    packed = table("llama") | {"data": text}
    with pytest.raises(ValueError, match=r"would read from one into the next; set data\.pack_documents = false"):
        train(parse_recipe(packed), tmp_path / "run")
    samples = parse_recipe(table("llama"), ["data.task_options.same_length_rows=0", "data.task_options.pack=true"])
    with pytest.raises(ValueError, match=r"data\.task_options\.pack = true"):
        train(samples, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    alone = parse_recipe(packed, ["data.pack_documents=false", "training.steps=2"])
    assert train(alone, tmp_path / "run")["tokens"] == 2 * 2 * 64


def test_a_start_is_for_gated_deltanets():
    recipe = table("llama")
    recipe["model"]["start"] = "recall"
    with pytest.raises(ValueError, match=r"is for models with Gated DeltaNet layers .* LlamaForCausalLM has none"):
        build_model(parse_recipe(recipe), byte_tokenizer())


WINDOW = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WINDOW |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "sliding_window": 8, "start": "authors"}
WINDOWS = {
    "bamba_window": {"attn_layer_indices": [1], "mamba_n_heads": 2, "mamba_d_state": 4, "mamba_n_groups": 1},
    "qwen3_next_window": {key: value for key, value in DELTA.items() if key.startswith(("linear", "num_experts"))}
    | {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8},
}


def windowed(name, **more):
    torch.manual_seed(0)
    return parse_recipe({"model": WINDOW | WINDOWS[name] | {"architecture": name} | more, "data": {"train": "a.txt"}})


@torch.no_grad()
@pytest.mark.parametrize("name", WINDOWS)
def test_hybrids_attend_in_a_window_and_read_in_pieces_as_whole(name, tmp_path):
    model = build_model(windowed(name), byte_tokenizer()).double().eval()
    attention = model.model.layers[1].self_attn
    seen = []
    hook = attention.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["attention_mask"]), with_kwargs=True)
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
    whole = model(ids, use_cache=False).logits
    hook.remove()
    allowed = seen[0][0, 0]
    assert torch.equal(allowed.sum(-1), torch.arange(1, 41).clamp(max=8))
    assert bool(allowed.diagonal().all())

    cache, parts = None, []
    for start in (0, 13, 26):
        output = model(ids[:, start : start + (14 if start == 26 else 13)], cache=cache, use_cache=True)
        cache = output.cache
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole)

    rates = [torch.nn.functional.softplus(p) for key, p in model.named_parameters() if key.endswith("dt_bias")]
    assert len(rates) == 1
    assert bool(((rates[0] > 0.99e-3) & (rates[0] < 0.101)).all())
    model.float().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.config.model_type, loaded.config.sliding_window) == (name, 8)
    torch.testing.assert_close(loaded(ids, use_cache=False).logits.double(), whole, rtol=1e-4, atol=1e-5)


def test_perplexity_of_a_recurrent_model_in_pieces(monkeypatch):
    model = build_model(parse_recipe(table("qwen3_next")), byte_tokenizer()).eval()
    text = ["The river ran under an old bridge where nobody had crossed since winter. " * 4]
    whole = perplexity.evaluate_perplexity(model, byte_tokenizer(), text, context_length=128)
    monkeypatch.setattr(perplexity, "LONGEST_PIECE", 32)
    assert perplexity.evaluate_perplexity(model, byte_tokenizer(), text, context_length=128).loss == pytest.approx(
        whole.loss, rel=1e-5
    )


@torch.no_grad()
def test_a_titans_model_may_start_as_usual():
    def memory(start):
        torch.manual_seed(0)
        options = {"preset": "tiny", "variant": "lmm", "hidden_size": 32, "num_attention_heads": 2}
        return build_model(parse_recipe({"model": options | start, "data": {"train": "a.txt"}}), byte_tokenizer())

    ours, usual = memory({}), memory({"start": "usual"})
    for one, other in zip(ours.modules(), usual.modules(), strict=True):
        if isinstance(one, NeuralMemory):
            assert torch.equal(one.q_proj.weight, one.k_proj.weight)
            assert not torch.equal(other.q_proj.weight, other.k_proj.weight)
            for name in "qkvo":
                assert 0.015 < float(getattr(other, f"{name}_proj").weight.std()) < 0.025
            assert float(other.k_conv1d.weight.abs().max()) <= other.conv_size**-0.5
            assert torch.equal(one.alpha_proj.bias, other.alpha_proj.bias)
    attention = {"preset": "tiny", "variant": "attention", "start": "usual"}
    with pytest.raises(ValueError, match=r"model\.start = 'usual' is for models with a memory"):
        build_model(parse_recipe({"model": attention, "data": {"train": "a.txt"}}), byte_tokenizer())
    with pytest.raises(ValueError, match=r"model\.start is 'usul'; allowed: usual; did you mean 'usual'"):
        parse_recipe({"model": {"start": "usul"}, "data": {"train": "a.txt"}})
