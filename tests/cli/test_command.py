"""The command itself: help for every verb, wrong flags, unexpected errors."""

import inspect
import os
import signal
import subprocess
import sys
from importlib import import_module
from typing import get_type_hints

import pytest

from titanslab.cli import VERBS, errors


def test_help_lists_every_verb_without_importing_it(titans):
    for module, _ in VERBS.values():
        sys.modules.pop(module, None)
    code, out, _ = titans("--help")
    assert code == 0
    for verb, (module, text) in VERBS.items():
        assert verb in out
        assert text.split()[0] in out
        assert module not in sys.modules


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, titans):
    code, out, _ = titans(verb, "--help")
    assert code == 0
    assert f"Example: titans {verb}" in " ".join(out.split())
    assert callable(getattr(import_module(VERBS[verb][0]), verb))


def test_no_arguments_show_help(titans):
    code, out, err = titans()
    assert code == 2
    assert "Usage: titans" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["train", "--lerning-rate", "3"], "No such option: --lerning-rate"),
        (["generate", "--prompt", "x"], "Missing option '--model'"),
        (["generate", "--model", "x", "--max-new-tokens", "many"], "Invalid value for '--max-new-tokens'"),
        (["generate", "--model", "x", "--max-new-tokens", "0"], "Invalid value for '--max-new-tokens'"),
        (["info", "--config"], "requires an argument"),
    ],
)
def test_wrong_flags_take_one_line_and_code_2(arguments, message, fails):
    line = fails(*arguments)
    assert message in line
    assert "--help)" in line


def test_version(titans):
    import titanslab

    assert titans("--version")[:2] == (0, f"titans-lab {titanslab.__version__}\n")


def test_debug_shows_the_traceback(titans, monkeypatch):
    with pytest.raises(FileNotFoundError):
        titans("--debug", "train", "none.toml")
    monkeypatch.setenv("TITANS_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        titans("train", "none.toml")
    assert titans("train", "--nosuch")[0] == 2


def test_unexpected_errors_are_one_line_with_their_type(capsys):
    assert errors.exit_code(RuntimeError("odd\nthing")) == 2
    assert capsys.readouterr().err == (
        "titans: error: RuntimeError: odd thing (unexpected; TITANS_DEBUG=1 shows where)\n"
    )
    assert "lower the batch size" in errors.describe(MemoryError())
    torch_says = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296000 bytes."
    assert errors.describe(RuntimeError(torch_says)).startswith("out of memory: 4,000.0 GiB at once; lower the batch")
    assert "out of memory" in errors.describe(RuntimeError("Storage size calculation overflowed with sizes=[9]"))
    assert errors.describe(PermissionError(13, "Permission denied", "/x")) == "'/x': Permission denied"
    assert len(errors.describe(ValueError("long " * 1000))) < 1000
    assert errors.exit_code(KeyboardInterrupt()) == 130


def test_as_a_module_in_its_own_process(tmp_path):
    command = [sys.executable, "-m", "titanslab.cli", "train", str(tmp_path / "none.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "does not exist" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line_and_code_130(titans, monkeypatch, number):
    def generate(**values):
        os.kill(os.getpid(), number)
        for _ in range(1000):
            pass

    module = import_module("titanslab.cli.generate")
    before = signal.getsignal(signal.SIGTERM)
    generate.__signature__ = inspect.signature(module.generate, eval_str=True)
    generate.__annotations__ = get_type_hints(module.generate, include_extras=True)
    monkeypatch.setattr(module, "generate", generate)
    code, _, err = titans("generate", "--model", "x", "hello")
    assert (code, err.strip()) == (130, "titans: interrupted")
    assert signal.getsignal(signal.SIGTERM) is before
