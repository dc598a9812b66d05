"""Wrong words of a verb: one line that names the word, the allowed values and an example."""

from importlib import import_module

import pytest
import typer

from titanslab.cli import VERBS
from titanslab.cli.errors import UsageError
from titanslab.cli.evaluate import task_function
from titanslab.cli.root import verb_command
from titanslab.cli.words import check_words, parameters_of
from titanslab.tasks.table import TASKS

FUNCTIONS = {verb: getattr(import_module(module), verb) for verb, (module, _) in VERBS.items()}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_known_to_the_early_check(verb):
    function = FUNCTIONS[verb]
    if isinstance(function, typer.Typer):
        return
    for option in verb_command(verb).params:
        for name in (*option.opts, *option.secondary_opts):
            if name.startswith("-"):
                after = ["--help"] if option.is_flag else ["--nosuch", "--help"]  # a value may begin with dashes
                check_words(function, [name, *after], verb)
                with pytest.raises(UsageError):
                    check_words(function, [name, *after, "--nosuch"], verb)
    check_words(function, ["--help", "--", "--nosuch"], verb)


@pytest.mark.parametrize("verb", VERBS)
def test_the_early_check_and_typer_agree_on_what_is_required(verb):
    functions = {verb: (FUNCTIONS[verb], verb_command(verb))}
    if isinstance(FUNCTIONS[verb], typer.Typer):
        group = verb_command(verb)
        functions = {name: (task_function(TASKS[name]), group.get_command(None, name)) for name in ("niah", "babilong")}
    for function, command in functions.values():
        known = {p.name: p for p in command.params if p.name != "help"}
        found = parameters_of(function)
        assert len(found) == len(known)
        assert sum(p.required for p in found) == sum(p.required for p in known.values())
        assert sum(p.kind is bool for p in found) == sum(getattr(p, "is_flag", False) for p in known.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "hello"], "Missing option '--model': A run folder or a saved model; example: titans generate"),
        (["read", "--save", "x"], "Missing argument 'TEXT': "),
        (["ask", "--memory", "x"], "Missing argument 'QUESTION': "),
        (["ask", "-m", "x", "Who?"], "Missing option '--memory': A file of titans read; example: titans ask"),
        (
            ["ask", "--memory", "x", "Who", "is", "it"],
            "unexpected argument 'is'; arguments of titans ask: QUESTION; put",
        ),
        (["read", "x", "--save", "y", "--piece-size", "0"], "'--piece-size': it must be a whole number of at least 1"),
        (["read", "x", "--save", "y", "--write-scale=inf"], "it must be a number of at least 0, got 'inf'"),
        (["chat", "--top-p", "1.5"], "it must be a number from 0.01 to 1, got '1.5'"),
        (["chat", "--seed", "4294967296"], "it must be a whole number from 0 to 4,294,967,295, got '4294967296'"),
        (
            ["evaluate", "-c", "x", "--model", "m"],
            "'--context-length': it must be a whole number of at least 1, got 'x'",
        ),
        (
            ["evaluate", "niah", "--samples", "0"],
            "--samples': it must be a whole number of at least 1, got '0' (see titans",
        ),
        (
            ["evaluate", "niah", "--modle", "x"],
            "No such option: --modle; did you mean --model? (see titans evaluate niah",
        ),
        (["evaluate"], "titans evaluate needs --model RUN and --data PATH, or a task: "),
        (["--hepl"], "No such option: --hepl; did you mean --help?"),
        (["generate", "-q", "x"], "No such option: -q"),
    ],
)
def test_wrong_words(words, said, fails):
    assert said in fails(*words)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("generate", ["-mx", "--", "--prompt-like text"]),
        ("generate", ["--model", "x", "-"]),
        ("ask", ["--memory=x", "-m", "--y", "Who?", "--no-learn"]),
        ("tokenizer", ["a", "b", "c", "--output", "t", "--vocab", "300"]),
        ("chat", ["--temperature", "1e-1"]),
    ],
)
def test_right_words_pass(verb, words):
    check_words(FUNCTIONS[verb], words, f"titans {verb}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["niah", "--lengths", "3x"], "--lengths is '3x'; it must be a number of tokens such as 4096, 4k or 1M"),
        (["niah", "--variant", "single_9"], "--variant has 'single_9'; it must be one or more of single_1"),
        (["niah", "--haystack", "none.txt"], "--haystack: 'none.txt' does not exist (looked for "),
        (["babilong", "--facts", ""], "--facts is an empty name"),
    ],
)
def test_a_wrong_option_of_a_task_is_named(words, said, fails, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert said in fails("evaluate", *words, "--model", tmp_path)
