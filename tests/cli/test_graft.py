"""`titans graft`: from a base and documents to a memory, and the verbs on its folder."""

import io
import json
import re
import shlex

import numpy as np
import pytest
import torch

import titanslab
from graft_base import save_base, save_documents
from titanslab import GraftCache
from titanslab.evaluation.decode import GreedyAnswerer
from titanslab.reading.answer import Sampling, answer
from titanslab.reading.models import read
from titanslab.runs.loading import load_base, open_model

SETS = ("graft.layers=all", "graft.num_heads=2", "graft.head_dim=8", "graft.chunk_size=8", "graft.control_tokens=100",
        "data.sequence_length=24", "training.warmup_steps=1", "training.cpu=true")  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("graft")
    return save_base(place / "base"), save_documents(place / "documents")


def test_a_memory_is_trained_measured_and_opened(titans, fails, folders, tmp_path):
    base, documents = folders
    memory = tmp_path / "memory"
    words = [word for text in SETS for word in ("--set", text)]
    code, out, err = titans(
        "graft", base, "--train", documents, "--output", memory, "--window", 16, "--lora", 2, "--steps", 2, *words
    )
    assert code == 0, err
    assert "loss in nats per token" in out
    assert "The memory is " in out
    assert "measured on documents of the training" in err
    content = json.loads((memory / "controls.json").read_text())
    assert content["window_size"] == 16
    assert len(content["positions"]) == 5
    assert (memory / "controls.png").exists()
    commands = re.findall(r"^  titans (.*)$", out, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["generate", "evaluate", "read", "ask"]
    (tmp_path / "book.txt").write_text("a short book")
    read = shlex.split(commands[2].replace("book.txt", str(tmp_path / "book.txt"), 1))
    assert titans(*read, "--device", "cpu")[0] == 0
    assert titans(*shlex.split(commands[3]), "--device", "cpu", "--max-new-tokens", 2)[0] == 0

    code, out, err = titans("generate", "--model", memory, "--prompt", "abc", "--max-new-tokens", 3, "--device", "cpu")
    assert code == 0, err
    code, out, err = titans("evaluate", "graft", "-m", memory, "-d", documents, "--max-tokens", 60, "--device", "cpu")
    assert code == 0, err
    assert (memory / "evaluation" / "controls.json").exists()
    assert "has no graft" in fails("evaluate", "graft", "-m", base, "-d", documents)


def test_wrong_words(fails, folders, tmp_path):
    base, documents = folders
    assert "Missing option '--output'" in fails("graft", base, "--train", documents)
    assert "'nowhere' does not exist" in fails("graft", "nowhere", "--train", documents, "--output", tmp_path / "m")
    wrong = ("--set", "graft.layers=some")
    assert "graft.layers must be one of" in fails("graft", base, "-t", documents, "-o", tmp_path / "m", *wrong)


@pytest.fixture(scope="session")
def grafted(folders):
    """The folder of a graft that was not trained by a run, without a tokenizer, with memories that have an effect."""
    base, _ = folders
    memory = titanslab.MemoryConfig(2, head_dim=8, chunk_size=8)
    model = titanslab.graft(load_base(str(base)), titanslab.GraftConfig("all", 16, memory=memory))
    torch.manual_seed(1)
    for part in model.graft.memories:
        torch.nn.init.normal_(part.o_proj.weight, std=0.3)
    model.save_pretrained(base.parent / "grafted")
    return base.parent / "grafted"


def test_a_text_is_read_asked_and_talked_about(titans, fails, grafted, folders, tmp_path):
    """A memory file has what the model read, and goes on in another process as if it had not been interrupted."""
    base, documents = folders
    text, cpu = documents / "1.txt", ("--device", "cpu")
    for name, piece in (("a", 64), ("b", 48)):
        words = ("--save", tmp_path / name, "--piece-size", piece, *cpu)
        code, out, err = titans("read", text, "--model", grafted, *words)
        assert code == 0, err
    model, tokenizer = open_model(grafted, "cpu")
    a, b = (GraftCache.load(tmp_path / name, model).tensors() for name in "ab")
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)
    cache = GraftCache.load(tmp_path / "a", model)
    said, after = answer(model, tokenizer, cache, "abc", Sampling(5))
    assert after.columns == cache.columns + 3 + 5
    ids = tokenizer(text.read_text() + "abc", add_special_tokens=False, return_tensors="pt").input_ids
    bos = torch.tensor([[tokenizer.bos_token_id]]) if tokenizer.bos_token_id is not None else ids[:, :0]
    ids = torch.cat((bos, ids), 1)[:, -cache.columns - 3 :]
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert said == tokenizer.decode(wanted[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
    assert read(model, ids[:, :0], cache).columns == cache.columns

    question = ("ask", "--memory", tmp_path / "a", "abc", "--max-new-tokens", 5, "--template", "{question}", *cpu)
    code, out, err = titans(*question)
    assert code == 0, err
    assert out.rstrip("\n") == said.rstrip("\n")
    assert "without a graft" in fails("ask", "--memory", tmp_path / "a", "abc", "--model", base, *cpu)
    code, out, err = titans("inspect", text, "--model", grafted, "--output", tmp_path / "page", *cpu)
    assert code == 0, err
    values = json.loads((tmp_path / "page" / "inspect.json").read_text())
    assert len(values["theta"]) == 2
    assert len(values["theta"][0]) == values["tokens"]
    assert max(values["moved"][1]) > 0
    code, out, err = titans(
        "evaluate", "-m", grafted, "-d", text, "-c", 150, *cpu
    )  # beyond the 64 positions of the base
    assert code == 0, err


def test_a_chat_goes_on(titans, grafted, tmp_path, monkeypatch):
    words = (
        "--model",
        grafted,
        "--session",
        tmp_path / "s",
        "--max-new-tokens",
        3,
        "--temperature",
        0,
        "--device",
        "cpu",
    )
    sizes = []
    for line in ("first\n", "second\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(line))
        code, _, err = titans("chat", *words)
        assert code == 0, err
        sizes.append(GraftCache.header(tmp_path / "s"))
    assert sizes[1].tokens > sizes[0].tokens
    assert sizes[1].notes["turns"] == 2


def test_prompts_of_tasks_are_read_in_pieces_and_padded(grafted):
    model, _ = open_model(grafted, "cpu")
    prompts = [np.arange(3, 103), np.arange(30, 70)]
    found = GreedyAnswerer(model, max_new_tokens=4)(prompts)
    alone = [GreedyAnswerer(model, max_new_tokens=4)([prompt])[0] for prompt in prompts]
    assert found == alone
    ids = torch.tensor(prompts[1][None])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert found[1] == whole[0, 40:].tolist()
    assert GreedyAnswerer(model, max_new_tokens=4, learn=False)(prompts) != found
