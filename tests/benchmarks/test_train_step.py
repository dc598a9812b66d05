"""Benchmark `train_step`: equal numbers of parameters, gradients of every candidate, the list of missing peers."""

import json
import sys

import pytest
from benchmarks.models import CANDIDATES, TRUNK, ModelSetting, build, fit_width, fitted_titans_config
from benchmarks.peers import Missing

from benchmarks import models, train_step
from titanslab.models.cost import cost


@pytest.mark.parametrize("size", ["tiny", "10m", "170m", "340m"])
@pytest.mark.parametrize("name", TRUNK)
def test_every_variant_has_the_parameters_of_its_size(size, name):
    s = ModelSetting(size, 512)
    assert cost(fitted_titans_config(name, s)).parameters == pytest.approx(s.target, rel=0.01)


def test_parameters_can_be_set():
    s = ModelSetting("tiny", 512, parameters=4_000_000)
    assert cost(fitted_titans_config("attention-full", s)).parameters == pytest.approx(4e6, rel=0.01)


def test_fit_width_solves_a_line_and_refuses_what_is_too_large():
    assert fit_width(lambda w: 100 + 10 * w, 100 + 10 * 64) == 64
    with pytest.raises(Missing, match="without any MLP"):
        fit_width(lambda w: 100 + 10 * w, 90)


def test_llama_has_as_many_parameters_and_takes_a_step():
    s = ModelSetting("tiny", 16)
    llama = build("llama", s)
    assert llama.parameters == pytest.approx(s.target, rel=0.01)
    before = llama.model.lm_head.weight.detach().clone()
    assert llama.step().isfinite()
    assert not llama.model.lm_head.weight.equal(before)


@pytest.mark.parametrize("name", ["mac", "attention-full"])
def test_a_step_changes_the_weights_and_leaves_no_gradient(name):
    work = build(name, ModelSetting("tiny", 16))
    assert work.parameters == pytest.approx(2.3e6, rel=0.01)
    before = [p.detach().clone() for p in work.model.parameters()]
    work.step()
    changed = [not p.equal(b) for p, b in zip(work.model.parameters(), before, strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    assert all(p.grad is None for p in work.model.parameters())
    assert work.flops > 0


def test_full_attention_counts_half_of_its_pairs():
    s = ModelSetting("tiny", 1024)
    config = fitted_titans_config("attention-full", s)
    pairs = 4 * config.hidden_size * config.num_hidden_layers * 1024**2
    assert models.causal_pairs_hidden("attention-full", s, config) == pairs // 2
    assert models.causal_pairs_hidden("mac", s, config) == 0


def test_missing_candidates_give_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "titans_pytorch", None)
    for name in ("titans-pytorch-mac", "titans-pytorch-mac-128"):
        with pytest.raises(Missing, match="titans-lab\\[bench\\]"):
            build(name, ModelSetting("tiny", 16))
    for name in ("gated-deltanet", "mamba2"):
        with pytest.raises(Missing, match="run on a GPU"):
            build(name, ModelSetting("tiny", 16))
    with pytest.raises(ValueError, match="candidate must be one of"):
        build("nobody", ModelSetting("tiny", 16))
    with pytest.raises(ValueError, match="size must be one of"):
        build("mac", ModelSetting("huge", 16))


def test_json_names_who_is_missing_and_keeps_all_repeats(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "titans_pytorch", None)
    monkeypatch.setattr(train_step, "picture", lambda *a: None)
    monkeypatch.setattr(train_step, "rate_probes", lambda *a: {"matmul 8": _Probe(), "copy": _Probe()})
    path = tmp_path / "r.json"
    options = ["--size", "tiny", "--tokens", "16", "--device", "cpu", "--repeats", "2", "--no-memory"]
    options += ["--candidates", "lmm", "attention-full", "titans-pytorch-mac"]
    train_step.main([*options, "--out", str(path)])
    content = json.loads(path.read_text())
    assert [m["name"] for m in content["missing"]] == ["titans-pytorch-mac"]
    (result,) = content["results"]
    assert set(result["candidates"]) == {"lmm", "attention-full"}
    for entry in result["candidates"].values():
        assert len(entry["step"]["repeats"]) == 2
        assert entry["losses_finite"] is True
        assert entry["step"]["floor"]["flops"] > 0
    assert set(result["ratios"]) == {"lmm / attention-full", "best Titans / attention-full"}
    assert result["ratios"]["best Titans / attention-full"]["best"] == "lmm"
    assert "lmm" in train_step.show(result)
    (panel,) = train_step.curves(content["results"])
    assert set(panel["curves"]) == {"lmm", "attention-full"}


class _Probe:
    work = 8

    def __call__(self):
        return None


def test_rows_name_known_candidates_and_can_be_narrowed():
    for row in train_step.ROWS.values():
        assert set(row["names"]) <= set(CANDIDATES)
        assert set(row["against"]) <= set(CANDIDATES)
    arguments = train_step.parser().parse_args(["--row", "gpu", "--size", "170m", "--tokens", "16384"])
    (setting,) = train_step.settings_of(arguments)
    assert (setting.size, setting.tokens, setting.batch, setting.dtype) == ("170m", 16384, 2, "bfloat16")
    arguments.tokens = [5]
    with pytest.raises(SystemExit, match="no setting"):
        train_step.settings_of(arguments)


def test_moving_a_model_keeps_the_optimizer_going():
    work, other = (build("lmm", ModelSetting("tiny", 16)) for _ in range(2))
    for _ in range(2):
        other.step()
    work.step()
    work.move("cpu")
    assert work.step().equal(other.losses[-1])


def test_checkpointing_gives_the_same_loss():
    plain, saved = (build("mag", ModelSetting("tiny", 16, checkpointing=c)) for c in (False, True))
    assert saved.model.is_gradient_checkpointing
    plain.step(), saved.step()
    assert saved.step().item() == pytest.approx(plain.step().item(), rel=1e-5)
