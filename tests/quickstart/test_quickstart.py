import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from titanslab.cli import main
from titanslab.evaluation.trace import PER_TOKEN, trace_memory
from titanslab.memory.conv import ShortConv
from titanslab.models.modeling import TitansForCausalLM
from titanslab.quickstart.corpus import Facts
from titanslab.quickstart.fit import fastest_threads, fit
from titanslab.quickstart.run import mean_recall, recall_by_distance
from titanslab.quickstart.settings import settings


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["quickstart", *words])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quickstart") / "made"
    assert run("--smoke", "--output", str(path), "--seed", "3") == 0
    return path


def test_results_say_what_was_trained_and_measured(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    titans, window = results["titans"], results["window"]
    assert results["seed"] == 3
    assert titans["bytes_read"] == window["bytes_read"] > 0
    assert 4 < titans["bits_per_byte"] < 12
    assert set(titans["recall"]) == set(window["recall"]) == {"16", "96"}
    assert results["chance"] == 0.01
    assert results["versions"]["torch"] == torch.__version__


def test_folder_loads_with_hugging_face(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Tom", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3, pad_token_id=258).shape == (1, 6)


@pytest.mark.parametrize("name", ["recall.png", "surprise.png"])
def test_pictures_are_png(folder: Path, name: str) -> None:
    assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run("--smoke", "--output", str(tmp_path)) == 2
    assert "--output" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_own_folder_is_written_again_and_the_screen_admits_failure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "note.txt").write_text("kept")
    assert run("--smoke", "--output", str(folder), "--seed", "4") == 2
    assert "--overwrite to replace it" in capsys.readouterr().err
    assert json.loads((folder / "results.json").read_text())["seed"] == 3
    assert run("--smoke", "--output", str(folder), "--seed", "4", "--overwrite") == 0
    assert json.loads((folder / "results.json").read_text())["seed"] == 4
    assert (folder / "note.txt").read_text() == "kept"
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    shown = capsys.readouterr().out
    assert "Titans (LMM)" in shown
    assert "window alone" in shown
    assert "less than the 5 times expected" in shown
    assert f"titans generate --model {folder}" in shown.replace("\n", "")


def test_minutes_must_be_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--minutes", "0", "--output", str(tmp_path / "q")) == 2
    assert "minutes" in capsys.readouterr().err


def test_models_differ_in_the_memory_alone() -> None:
    chosen = settings()
    models = [TitansForCausalLM(chosen.config(v)) for v in ("lmm", "attention")]
    sizes = [model.num_parameters() for model in models]
    assert abs(sizes[0] - sizes[1]) / sizes[0] < 0.03
    taps = [{tuple(m.weight.shape) for m in model.modules() if isinstance(m, ShortConv)} for model in models]
    assert taps[0] == taps[1] == {(4, 128)}


def test_the_window_reaches_as_many_bytes_as_its_settings_say() -> None:
    chosen = settings()
    model = TitansForCausalLM(chosen.config("attention")).eval()
    embeddings = torch.randn(1, chosen.reach + 2, chosen.hidden_size, requires_grad=True)
    model(inputs_embeds=embeddings).logits[0, -1].sum().backward()
    assert embeddings.grad is not None
    moved = embeddings.grad[0].abs().amax(-1) > 0
    assert moved.tolist() == [False] * 2 + [True] * chosen.reach


def test_follower_takes_the_same_steps_whatever_the_clock() -> None:
    facts = Facts(settings(smoke=True))
    first = fit(TitansForCausalLM(facts.settings.config("lmm")), facts, 0)
    first.shares = [0.0, 0.4, 0.9]
    second = fit(TitansForCausalLM(facts.settings.config("attention")), facts, 0, follow=first)
    assert second.shares == first.shares
    assert len(second.losses) == 3


def test_thread_count_is_one_of_two_and_torch_keeps_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        facts = Facts(settings(smoke=True))
        chosen = fastest_threads(lambda: TitansForCausalLM(facts.settings.config("attention")), facts, 0)
        assert chosen in (1, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_batches_start_with_bos_and_repeat_by_seed() -> None:
    facts = Facts(settings(smoke=True))
    batch = facts.training_batch(0, 5)
    assert batch.input_ids.shape == (2, 64)
    assert facts.training_batch(0, 5, share=0.9).input_ids.shape == (1, 128)
    assert (batch.input_ids[:, 0] == 256).all()
    assert torch.equal(batch.input_ids, facts.training_batch(0, 5).input_ids)
    assert not torch.equal(batch.input_ids, facts.training_batch(1, 5).input_ids)
    question = facts.questions(96, 1)
    assert (question.distance.amax(1) == 96).all()


def test_a_model_that_knows_the_answers_is_scored_right() -> None:
    facts = Facts(settings(smoke=True))

    class Oracle(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            logits = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 260).float()
            return type("Output", (), {"logits": logits})

    assert recall_by_distance(Oracle(), facts, 1) == {16: 1.0, 96: 1.0}
    assert mean_recall({16: 1.0, 96: 0.5, 192: 0.25}, beyond=63) == 0.375
    assert mean_recall({16: 1.0, 96: 0.5, 192: 0.25}, within=63) == 1.0


def test_surprise_has_a_value_per_byte_and_block() -> None:
    facts = Facts(settings(smoke=True))
    model = TitansForCausalLM(facts.settings.config("lmm")).eval()
    trace = trace_memory(model, torch.tensor([facts.tokenizer("The cat sat")["input_ids"]]))
    assert all(trace.per_token[name].shape == (2, 11) for name in PER_TOKEN)
    assert (trace.per_token["surprise"][1] > 0).all()
