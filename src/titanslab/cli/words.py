"""The words of a command, checked against its function before typer builds a parser, which takes longer."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

import typer

from titanslab.cli.errors import UsageError

EXAMPLE = re.compile(r"Example: \[bold\](.*?)\[/bold\]")
HELP = ("--help", "-h")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command's function.

    Args:
        info: typer's own description of it.
        names: of an option, such as `--model` and `-m`; () for an argument.
        kind: the type of one value.
        many, required: whether it takes several values, and whether it has no default.
        label: its name in a message.
    """

    info: Any
    names: tuple[str, ...]
    kind: Any
    many: bool
    required: bool
    label: str


def check_words(verb: Callable[..., Any], words: Sequence[str], command: str, verbs: Iterable[str] = ()) -> None:
    """Raise UsageError for the first option that a verb does not have, a value that it does not take, or a missing one.

    Typer finds the same errors. Words of which this check is not sure are left to it.

    Args:
        verb: the function, with typer's annotations.
        words: everything after its name.
        command: its name in messages, such as "titans train".
        verbs: verbs of its own, one of which may come in the place of an argument.
    """
    parameters = parameters_of(verb)
    by_name = {name: parameter for parameter in parameters for name in parameter.names}
    known = sorted({*by_name, *HELP})
    given: list[tuple[Parameter, str]] = []
    plain: list[str] = []
    helps, left = False, iter(words)
    for word in left:
        if word == "--":
            plain += left
        elif word in HELP:
            helps = True
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if name not in by_name:
                raise UsageError.of_name("option:", name, [n for n in known if n.startswith("--")], command)
            if by_name[name].kind is not bool:
                given.append((by_name[name], value if equals else _next(left, name, command)))
        elif word.startswith("-") and word != "-":
            short, value = by_name.get(word[:2]), word[2:]
            if short is None:
                raise UsageError.of_name("option:", word, known, command)
            if short.kind is not bool:
                given.append((short, value or _next(left, word, command)))
        else:
            plain.append(word)
    if helps or (plain and plain[0] in verbs):
        return
    if plain and verbs:
        raise UsageError.of_name("command", plain[0], verbs, command)
    for parameter, value in given:
        _check_value(parameter, value, command)
    _check_all_given(verb, parameters, {parameter.label for parameter, _ in given}, plain, command)


def _next(left: Iterator[str], name: str, command: str) -> str:
    """The value after an option; UsageError at the end of the words."""
    for word in left:
        return word
    raise UsageError(f"Option '{name}' requires an argument", command)


def parameters_of(verb: Callable[..., Any]) -> list[Parameter]:
    """The options and arguments of a function with typer's annotations, in its order."""
    found = []
    defaults = inspect.signature(verb).parameters
    for key, hint in get_type_hints(verb, include_extras=True).items():
        infos = [info for info in getattr(hint, "__metadata__", ()) if isinstance(info, typer.models.ParameterInfo)]
        if not infos:
            continue
        info = infos[0]
        kind = hint.__origin__
        if isinstance(kind, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        many = get_origin(kind) is list
        kind = get_args(kind)[0] if many else kind
        names: tuple[str, ...] = ()
        if isinstance(info, typer.models.OptionInfo):
            given = (info.default, *(info.param_decls or ()))  # in Annotated the first name comes as default
            texts = [text for text in given if isinstance(text, str)] or [f"--{key.replace('_', '-')}"]
            names = tuple(part for text in texts for part in text.split("/"))
        label = names[0] if names else info.metavar or key.upper()
        found.append(Parameter(info, names, kind, many, defaults[key].default is inspect.Parameter.empty, label))
    return found


def _check_value(parameter: Parameter, text: str, command: str) -> None:
    """UsageError for a text that is no number, or a number outside the limits of the option."""
    if parameter.kind not in (int, float):
        return
    least, most = parameter.info.min, parameter.info.max
    try:
        value = parameter.kind(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and (least is None or value >= least) and (most is None or value <= most):
        return
    allowed = "a whole number" if parameter.kind is int else "a number"
    if least is not None:
        allowed += f" of at least {least:g}" if most is None else f" from {least:g} to {most:,.15g}"
    raise UsageError(f"Invalid value for '{parameter.label}': it must be {allowed}, got {text!r}", command)


def _check_all_given(
    verb: Callable[..., Any], parameters: list[Parameter], labels: set[str], plain: list[str], command: str
) -> None:
    """UsageError for a required option or argument that is missing, or for one argument too many."""
    example = EXAMPLE.search(verb.__doc__ or "")
    ending = f"; example: {example[1]}" if example else ""
    arguments = [parameter for parameter in parameters if not parameter.names]
    missing = arguments[len(plain) :] + [parameter for parameter in parameters if parameter.names]
    for parameter in missing:
        if parameter.required and parameter.label not in labels:
            kind = "option" if parameter.names else "argument"
            about = (parameter.info.help or "").rstrip(".")
            raise UsageError(f"Missing {kind} '{parameter.label}': {about}{ending}", command)
    if len(plain) > len(arguments) and not any(parameter.many for parameter in arguments):
        takes = ", ".join(parameter.label for parameter in arguments) or "none"
        extra = plain[len(arguments)]
        raise UsageError(
            f"unexpected argument {extra!r}; arguments of {command}: {takes}; put text with spaces in quotes", command
        )
