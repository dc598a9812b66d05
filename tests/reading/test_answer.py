"""How a model is asked: what is given by hand, what its folder says, and what holds where neither does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from titanslab.data import byte_tokenizer
from titanslab.data.template import DEFAULT, chat_template, check_template, question_prompt
from titanslab.reading.answer import Manner, Sampling, answer
from titanslab.runs.loading import load_model, load_model_tokenizer

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
TEMPLATES = (DEFAULT, " {question}", "{question}", 'Q: "{question}"\nA\\n:', "{% raw %} é🎉 {question} {{ x }}")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_gives_the_prompt_of_the_plain_one(template, tmp_path):
    tokenizer = byte_tokenizer()
    question = "Who {{ is }} {% there %}?\n"
    plain = question_prompt(tokenizer, question, template)
    assert plain == template.replace("{question}", question)
    tokenizer.chat_template = chat_template(template)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert question_prompt(loaded, question) == plain
    assert loaded.apply_chat_template([{"role": "user", "content": question}], tokenize=False) == plain
    assert question_prompt(loaded, question, "!{question}") == "!" + question


def test_a_conversation_of_several_turns_is_one_text():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template(" {question}")
    turns = [("user", "Mary is out."), ("assistant", ""), ("user", "Where?"), ("assistant", " out"), ("user", "Oh.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == " Mary is out. Where? out Oh."


def test_a_model_without_a_template_has_the_default():
    assert question_prompt(byte_tokenizer(), "Who?") == "\n\nWho?\n"


def test_start_tokens_of_a_chat_template_are_left_to_the_reader():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    assert question_prompt(tokenizer, "Who?") == "Who?"
    tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(ValueError, match="no system message; give another template"):
        question_prompt(tokenizer, "Who?")


@pytest.mark.parametrize("wrong", ["", "question", "{question} {question}"])
def test_a_template_holds_the_question_once(wrong):
    with pytest.raises(ValueError, match=r"--template must hold \{question\} once"):
        check_template(wrong, "--template")


class Model:
    """A model whose folder says something about answers."""

    def __init__(self, **values):
        from transformers import GenerationConfig

        self.generation_config = GenerationConfig(**values)


@pytest.mark.parametrize(
    ("folder", "given", "expected"),
    [
        ({}, {}, Sampling(128, 0.8, 0, 0.95)),
        ({"max_new_tokens": 9}, {}, Sampling(9, 0.8, 0, 0.95)),
        ({"do_sample": False, "max_new_tokens": 9}, {}, Sampling(9, 0.0, 0, 0.95)),
        ({"do_sample": True, "temperature": 0.3, "top_p": 0.5, "top_k": 7}, {}, Sampling(128, 0.3, 7, 0.5)),
        ({"do_sample": True}, {}, Sampling(128, 1.0, 0, 1.0)),
        ({"do_sample": False}, {"temperature": 0.2, "max_new_tokens": 3}, Sampling(3, 0.2, 0, 0.95)),
        ({"do_sample": True, "temperature": 0.3}, {"temperature": 0.0, "top_p": 0.4}, Sampling(128, 0.0, 0, 0.4)),
    ],
)
def test_by_hand_wins_over_the_folder_and_the_folder_over_the_rest(folder, given, expected):
    assert Manner(**given).sampling(Model(**folder), Sampling(128, 0.8, top_p=0.95)) == expected


def test_what_a_session_began_with_holds_until_it_is_changed():
    begun = Manner(template=" {question}", temperature=0.0)
    notes = json.loads(json.dumps(begun.given()))
    assert Manner().over(notes) == begun
    assert Manner(temperature=0.5).over(notes | {"later": 1}) == Manner(template=" {question}", temperature=0.5)


def read(name: str, text: str):
    folder = CHECKPOINTS / name
    model, tokenizer = load_model(folder), load_model_tokenizer(folder)
    cache = model.read(tokenizer(text, return_tensors="pt").input_ids)

    def ask(question: str) -> str:
        prompt = question_prompt(tokenizer, question)
        return answer(model, tokenizer, cache, prompt, Manner().sampling(model, Sampling(128, 0.8)))[0].strip()

    return ask


def test_the_needle_model_answers_in_plain_words():
    from titanslab.quickstart.corpus import bundled_text

    book = " ".join(bundled_text()[1].split())[:8000]
    cut = book.index(". ", 3000) + 2
    needle = "One of the special magic numbers for purple-elephant is: 4821937. "
    ask = read("niah-mac", book[:cut] + needle + book[cut:])
    for question in (
        "What is the special magic number for purple-elephant?",
        "What number belongs to purple-elephant?",
        "purple-elephant",
    ):
        assert ask(question) == "4821937", question


def test_the_story_model_answers_in_plain_words():
    ask = read("babilong-mac", "Mary took the milk. Mary went to the garden. John went to the office.")
    assert ask("Where is the milk?") == "garden"
    assert ask("Where is John?") == "office"


@pytest.mark.parametrize("name", ["niah-mac", "babilong-mac"])
def test_a_plain_user_of_hugging_face_gets_the_same(name, tmp_path):
    """Template, length and temperature survive a round trip through `from_pretrained` and `save_pretrained`."""
    folder = shutil.copytree(CHECKPOINTS / name, tmp_path / "a")
    model, tokenizer = load_model(folder), load_model_tokenizer(folder)
    model.save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    again, kept = load_model(tmp_path / "b"), load_model_tokenizer(tmp_path / "b")
    assert kept.chat_template == tokenizer.chat_template
    assert again.generation_config.do_sample is False
    assert again.generation_config.max_new_tokens == model.generation_config.max_new_tokens > 0
    messages = [{"role": "user", "content": "Mary went to the garden. Where is Mary?"}]
    ids = kept.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    assert again.generate(ids).shape[1] > ids.shape[1]
    assert torch.equal(again.generate(ids), model.generate(ids))
