"""Sessions: what the file keeps, and beginning again."""

import os

import pytest
import torch

from titanslab import TitansCache, TitansConfig, TitansForCausalLM
from titanslab.data import byte_tokenizer
from titanslab.data.template import chat_template
from titanslab.reading.answer import Manner
from titanslab.reading.session import open_session, state_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an untrained model whose answers are two tokens long."""
    folder = tmp_path_factory.mktemp("models") / "small"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = TitansForCausalLM(TitansConfig.preset("tiny", vocab_size=len(tokenizer), eos_token_id=None, **sizes))
    network.generation_config.max_new_tokens = 2
    network.generation_config.do_sample = False
    tokenizer.chat_template = chat_template("<{question}>")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TITANS_STATE", str(tmp_path / "state"))


def test_a_session_has_a_default_place_per_model_and_goes_on_there(model):
    first = open_session(None, model, None, "cpu", Manner())
    assert first.file.parent == state_folder() / "sessions"
    assert first.file.name.startswith("small-")
    assert not first.file.exists()
    assert first.prompt("hi") == "<hi>"
    first.say("hi")
    first.close()
    tokens = first.cache.columns
    assert tokens == 1 + len("<hi>") + 2  # the start token, the prompt and the answer
    second = open_session(None, model, None, "cpu", Manner())
    assert (second.file, second.turns, second.cache.columns) == (first.file, 1, tokens)


def test_what_was_chosen_by_hand_is_kept(model, tmp_path):
    file = tmp_path / "a.session"
    with open_session(file, model, None, "cpu", Manner(template="!{question}", max_new_tokens=1)) as session:
        session.say("hi")
    session = open_session(file, None, None, "cpu", Manner(temperature=0.5))
    assert session.prompt("x") == "!x"
    assert (session.sampling.max_new_tokens, session.sampling.temperature) == (1, 0.5)
    session.say("x")
    session.close()
    assert open_session(file, None, None, "cpu", Manner()).sampling.temperature == 0.5


def test_a_session_of_an_earlier_release_goes_on(model, tmp_path):
    session = open_session(tmp_path / "a.session", model, None, "cpu", Manner())
    session.say("hi")
    session.cache.save(session.file, session.model, {"model": model, "turns": 1})  # without a manner
    session.close()
    again = open_session(session.file, None, None, "cpu", Manner())
    assert (again.turns, again.manner) == (1, Manner())


def test_forgetting_begins_again_and_keeps_the_file(model, tmp_path):
    memory = tmp_path / "m.memory"
    begun = open_session(tmp_path / "a.session", model, None, "cpu", Manner())
    assert begun.forget() is None
    begun.say("hi")
    begun.save_as(memory)
    with pytest.raises(ValueError, match="holds a memory; give another name"):
        begun.save_as(memory)
    session = open_session(tmp_path / "b.session", None, memory, "cpu", Manner())
    at_start = session.cache.columns
    assert at_start == begun.cache.columns
    session.say("more")
    kept = session.forget()
    assert kept == tmp_path / "b.session.forgotten"
    assert TitansCache.header(kept).notes["turns"] == 1
    assert (session.turns, session.cache.columns) == (0, at_start)
    assert not session.file.exists()
    session.say("again")
    assert session.file.exists()


def test_two_chats_do_not_overwrite_each_other(model, tmp_path):
    file = tmp_path / "a.session"
    with open_session(file, model, None, "cpu", Manner()) as first:
        for name in (file, file.parent / "." / "a.session"):
            with pytest.raises(ValueError, match=r"session .* is being written by another process"):
                open_session(name, model, None, "cpu", Manner())
        first.say("one")
        os.utime(file)  # a program without locks
        with pytest.raises(ValueError, match="was changed by another program"):
            first.say("two")
    with open_session(file, model, None, "cpu", Manner()) as again:
        assert again.turns == 1
        assert again.say("two") is not None
    assert TitansCache.header(file).notes["turns"] == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_refusals(model, tmp_path):
    session = open_session(tmp_path / "a.session", model, None, "cpu", Manner())
    session.say("hi")
    session.save_as(tmp_path / "m.memory")
    session.close()
    with pytest.raises(ValueError, match="give --model RUN"):
        open_session(None, None, None, "cpu", Manner())
    with pytest.raises(ValueError, match="is new: give --model RUN"):
        open_session(tmp_path / "new.session", None, None, "cpu", Manner())
    with pytest.raises(ValueError, match="exists already"):
        open_session(session.file, None, tmp_path / "m.memory", "cpu", Manner())
    with pytest.raises(ValueError, match="is a memory, no session"):
        open_session(tmp_path / "m.memory", None, None, "cpu", Manner())
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be made .*; name a file with --session"):
        open_session(None, model, None, "cpu", Manner())
