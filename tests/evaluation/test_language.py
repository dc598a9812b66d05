"""The language tasks on tiny models: lm-eval's own prompts and numbers, resuming, the table."""

import json
import os
import signal
import time

import pytest
import torch

from language_data import write_language_data
from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import byte_tokenizer
from titanslab.evaluation.language import run as run_module
from titanslab.evaluation.language.run import LanguageRun, run_language
from titanslab.evaluation.language.table import average, markdown, values
from titanslab.evaluation.language.tasks import TASKS

pytest.importorskip("lm_eval")
NAMES = list(TASKS)


def save(model, folder):
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def titans(tmp_path_factory):
    torch.manual_seed(0)
    config = TitansConfig.preset(
        "tiny", vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, segment_len=32
    )
    return save(TitansForCausalLM(config), tmp_path_factory.mktemp("models") / "titans")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=256, eos_token_id=257, pad_token_id=258, max_position_embeddings=512,
    )  # fmt: skip
    return save(LlamaForCausalLM(config), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_language_data(tmp_path_factory.mktemp("language") / "data")


def asked(model, output, data, names=NAMES, **more):
    rows = [TASKS[name] for name in names]
    return LanguageRun(str(model), rows, output, torch.device("cpu"), data, **more)


@pytest.fixture(scope="module")
def finished(titans, data, tmp_path_factory):
    """All tasks of the Titans model, and the folder of their results."""
    output = tmp_path_factory.mktemp("finished") / "out"
    return run_language(asked(titans, output, data)), output


def test_every_task_has_the_metrics_of_its_columns(finished):
    found, output = finished
    assert list(found) == NAMES
    for name, scored in found.items():
        assert scored.samples == 2
        for column in TASKS[name].columns:
            assert scored.scores[column.metric] >= 0
            assert name == "wikitext" or scored.errors[column.metric] >= 0
    assert [json.loads(line)["task"] for line in (output / "results.jsonl").read_text().splitlines()] == NAMES


@pytest.mark.parametrize(
    ("kind", "names"),
    [("titans", ["wikitext", "lambada_openai", "hellaswag", "winogrande", "boolq"]), ("llama", ["wikitext", "piqa"])],
)
def test_lm_eval_run_directly_gives_the_same_numbers(kind, names, data, tmp_path, request):
    """On the written YAML and the folder of the model, with lm-eval's own model and entry."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = request.getfixturevalue(kind)
    found = run_language(asked(folder, tmp_path, data, names, batch_size=2, context_length=64))
    results = simple_evaluate(
        model="hf", model_args={"pretrained": str(folder), "max_length": 64}, batch_size=2, device="cpu",
        tasks=[str(tmp_path / "data" / f"{name}.yaml") for name in names],
        task_manager=TaskManager(include_defaults=False),
    )["results"]  # fmt: skip
    for name in names:
        direct = {key.removesuffix(",none"): value for key, value in results[name].items() if isinstance(value, float)}
        own = found[name].scores | {f"{metric}_stderr": error for metric, error in found[name].errors.items()}
        assert own == {key: value for key, value in direct.items() if key in own}
        assert own.keys() == direct.keys() - {"sample_len"}


def test_the_prompts_are_those_of_the_hub_s_data(finished):
    """The text that lm-eval makes of the rows of the local files, for the tasks whose forms differ most."""
    from lm_eval.tasks import TaskManager

    _, output = finished
    paths = [str(output / "data" / f"{name}.yaml") for name in NAMES]
    tasks = TaskManager(include_defaults=False).load(paths)["tasks"]
    docs = {name: list(task.eval_docs) for name, task in tasks.items()}
    assert docs["hellaswag"][0]["query"] == "Roof work: A man is sitting on a roof. He"
    wino, boolq = tasks["winogrande"], tasks["boolq"]
    assert wino.doc_to_choice(docs["winogrande"][0]) == ["Ann thanked Eve because Ann", "Ann thanked Eve because Eve"]
    assert wino.doc_to_target(docs["winogrande"][0]) == "had helped her."
    assert boolq.doc_to_text(docs["boolq"][1]) == "Snow is cold.\nQuestion: is snow warm?\nAnswer:"
    assert tasks["arc_easy"].doc_to_text(docs["arc_easy"][0]) == "Question: Which of these is a metal?\nAnswer:"
    assert tasks["arc_easy"].doc_to_target(docs["arc_easy"][0]) == 1
    assert tasks["social_iqa"].doc_to_text(docs["social_iqa"][0]) == "Q: Tom lent Kim his bicycle. How is Kim?\nA:"
    assert tasks["social_iqa"].doc_to_target(docs["social_iqa"][0]) == 1
    assert tasks["lambada_openai"].doc_to_target(docs["lambada_openai"][0]) == " cat"


def test_a_stopped_run_goes_on_with_the_next_task(llama, data, tmp_path, monkeypatch):
    names = ["piqa", "arc_easy", "boolq"]
    evaluated = []
    whole = run_module._evaluate

    def stops(run, task, *more):
        evaluated.append(task.name)
        if evaluated.count("arc_easy") == 1 and task.name == "arc_easy":
            raise KeyboardInterrupt
        return whole(run, task, *more)

    monkeypatch.setattr(run_module, "_evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        run_language(asked(llama, tmp_path, data, names))
    results = tmp_path / "results.jsonl"
    results.write_text(results.read_text() + '{"task": "arc_ea')  # a line that a killed process left
    found = run_language(asked(llama, tmp_path, data, names))
    assert evaluated == ["piqa", "arc_easy", "arc_easy", "boolq"]
    assert list(found) == names
    assert len(results.read_text().splitlines()) == 3


def test_a_folder_of_other_settings_is_refused(llama, titans, data, tmp_path):
    run_language(asked(llama, tmp_path, data, ["piqa"], limit=1))
    with pytest.raises(ValueError, match=r"results of piqa made with another limit \(1, now none\)"):
        run_language(asked(llama, tmp_path, data, ["piqa"]))
    with pytest.raises(ValueError, match="made with another context_length"):
        run_language(asked(llama, tmp_path, data, ["piqa"], limit=1, context_length=32))
    with pytest.raises(ValueError, match="made with another config"):
        run_language(asked(titans, tmp_path, data, ["piqa"], limit=1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"piqa"', '"pika"', "line 1: task is 'pika', which is none of wikitext"),
        ('"acc":', '"accuracy":', "line 1: scores has no acc; remove that line"),
        ('"samples": 1', '"samples": 0', "line 1: samples must be a whole number of at least 1"),
        ("}", "", "line 1 is not valid JSON"),
    ],
)
def test_a_damaged_result_is_named(old, new, message, llama, data, tmp_path):
    run_language(asked(llama, tmp_path, data, ["piqa"], limit=1))
    results = tmp_path / "results.jsonl"
    assert old in results.read_text()
    results.write_text(results.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"results\.jsonl") as caught:
        run_language(asked(llama, tmp_path, data, ["piqa"], limit=1))
    assert message in str(caught.value)


def test_a_model_that_is_not_finite_is_named(llama, data, tmp_path):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    folder = save(model, tmp_path / "broken")
    with pytest.raises(ValueError, match=r"lambada_openai: perplexity is nan; the model's logits are not finite"):
        run_language(asked(folder, tmp_path / "out", data, ["lambada_openai"]))


def test_windows_of_wikitext_are_as_many_at_once_as_their_logits_fit(llama, data, tmp_path, monkeypatch):
    from titanslab.evaluation.language import model

    monkeypatch.setattr(model, "LOGITS_AT_ONCE", 3 * 32 * 259)
    found = run_language(asked(llama, tmp_path, data, ["wikitext", "piqa"], batch_size=4, context_length=32))
    assert [(s.batch_size, s.context_length) for s in found.values()] == [(3, 32), (4, 32)]


def test_the_signal_that_ends_a_worker_of_lm_eval_is_silent_there_and_an_interrupt_here():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command has it
    try:
        with run_module._workers_end_quietly():
            reads, writes = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writes, b"x")
                for _ in range(1000):
                    time.sleep(0.01)
                os._exit(1)
            assert os.read(reads, 1) == b"x"  # Python drops a signal that comes before a fork is complete
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_hub_that_cannot_be_reached_is_named_with_the_way_around(llama, tmp_path, monkeypatch):
    import datasets

    def fails(*arguments, **options):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(ValueError, match="the hub's data set of piqa cannot be loaded") as caught:
        run_language(asked(llama, tmp_path, None, ["piqa"]))
    assert str(caught.value).endswith("(ConnectionError: no route); check the network, or give local files with --data")


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'titans-lab\[eval\]'"):
        run_module.lm_eval_version()


def test_the_average_is_over_the_accuracies_and_needs_all_of_them(finished):
    found, _ = finished
    row = values(found.values())
    assert [value.column.title for value in row] == [
        "Wiki ppl", "LMB ppl", "LMB acc", "PIQA acc", "Hella acc_n", "Wino acc", "ARC-e acc", "ARC-c acc_n",
        "SIQA acc", "BoolQ acc",
    ]  # fmt: skip
    shares = [found[name].scores["acc_norm" if name in ("hellaswag", "arc_challenge") else "acc"] for name in NAMES[1:]]
    assert average(row) == pytest.approx(100 * sum(shares) / 8)
    assert average(values(s for s in found.values() if s.task != "piqa")) is None
    lines = markdown("tiny", list(found.values()), "note").splitlines()
    assert lines[0].endswith("| BoolQ acc | Avg |")
    assert lines[2].startswith("| tiny | ")
    assert len({line.count("|") for line in lines[:4]}) == 1
