"""What the command loads: no library of models for help, version and usage errors, no trainer to read a model."""

import resource
import subprocess
import sys
from itertools import pairwise

import pytest

from titanslab.cli import VERBS

LIST = """
import sys
from titanslab.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    print("\\n" + str(stop.code), *sys.modules)
"""
HEAVY = {"torch", "transformers", "numpy", "datasets", "accelerate", "matplotlib"}
TRAINING = {"transformers.trainer", "datasets", "matplotlib", "titanslab.training", "titanslab.evaluation"}


def loaded(*arguments: object) -> tuple[str, set[str]]:
    """The exit code and the modules that were loaded when a command in a process of its own had ended."""
    program = LIST.format(arguments=[str(argument) for argument in arguments])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    code, *modules = done.stdout.splitlines()[-1].split()
    return code, set(modules)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], "0"),
        (["--version"], "0"),
        ([], "2"),
        (["trian"], "2"),
        (["--nosuch"], "2"),
        (["train", "--nosuch"], "2"),
        (["generate", "--modle", "x"], "2"),
        (["generate", "--prompt", "x"], "2"),
        (["read"], "2"),
        (["ask", "Who?", "--memory", "x", "--max-new-tokens", "many"], "2"),
        (["evaluate", "niha"], "2"),
        (["evaluate", "niah", "--modle", "x"], "2"),
    ],
)
def test_help_version_and_usage_errors_load_no_library_of_models(words, code):
    found, modules = loaded(*words)
    assert found == code
    assert not modules & (HEAVY | {"pydantic", "typer.rich_utils"})


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_loads_torch_to_show_its_help(verb):
    code, modules = loaded(verb, "--help")
    assert code == "0"
    assert not modules & HEAVY


def test_a_usage_error_costs_less_than_twice_the_imports_of_its_libraries():
    def seconds(*words):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def fastest(*words):
        return min(seconds(*words) for _ in range(5))

    libraries = fastest("-c", "import typer, rich")
    for words in (["--help"], ["trian"], ["train", "--nosuch"], ["generate"], ["evaluate", "niha"]):
        assert fastest("-m", "titanslab.cli", *words) < 2 * libraries


def test_generate_and_ask_load_no_trainer(trained, text_file, tmp_path, titans):
    memory = tmp_path / "lines.memory"
    assert titans("read", text_file, "--model", trained, "--save", memory)[0] == 0
    for words in (["generate", "--model", trained, "--prompt", "Line"], ["ask", "Line", "--memory", memory]):
        code, modules = loaded(*words, "--max-new-tokens", 1)
        assert code == "0"
        assert "titanslab.models.modeling" in modules
        assert not modules & TRAINING


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'; did you mean train? (see titans --help)"),
        (["xyz"], "No such command 'xyz' (see titans --help)"),
        (["--verson"], "No such option: --verson; did you mean --version?"),
        (["train", "--ouptut", "x"], "No such option: --ouptut; did you mean --output? (see titans train --help)"),
        (["read", "x", "--saev=y"], "No such option: --saev; did you mean --save?"),
        (["evaluate", "niha"], "No such command 'niha'; did you mean niah? (see titans evaluate --help)"),
    ],
)
def test_a_wrong_verb_or_option_gets_the_nearest_one(words, said, fails):
    assert said in fails(*words)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_no_short_lines_inside_a_paragraph(verb, titans, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = titans(verb, "--help")
    assert code == 0
    lines = out.partition("╭")[0].splitlines()
    for line, following in pairwise(lines):
        if line.strip() and following.strip():
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > 78, line
