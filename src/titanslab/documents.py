"""The one place that reads JSON and TOML: bytes, depth, numbers and keys are limited, and a schema gives the types.

    read_json(path, Result, fix="delete it")        a file
    parse_json(text, Record, origin="a.jsonl, line 3")      a text, such as one line of a file or one entry of a header
    read_toml(path, "recipe")                       a TOML file as a dict
    checked(value, int, "recipe.toml: training.steps")      a value that was read already

A schema is any type that msgspec knows: `int`, `str | None`, `dict[str, float]`, `tuple[int, list[int]]`, a dataclass,
a `TypedDict` or a `msgspec.Struct`, with bounds such as `Annotated[int, msgspec.Meta(ge=1)]`. Nothing is converted,
except that a whole number is taken where a float is asked for.

Every fault of the contents is a `DocumentError`, a ValueError with one line that names the file, the key, the value and
the fix. A file that is missing or cannot be opened raises the OSError of the system, which names the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from typing import Any

from msgspec import ValidationError, convert

JSON_BYTES = 64 << 20  # of one JSON document; the longest are the Trainer's logs of long runs
TOML_BYTES = 4 << 20  # of one TOML document
DEPTH = 64  # tables and lists inside each other; Python's own readers and writers fail at some hundreds
INTEGERS = -(1 << 63), (1 << 64) - 1  # whole numbers that NumPy and torch can hold
LONGEST = 80  # characters of a value in a message
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "null",
}


class DocumentError(ValueError):
    """A file or a text has contents that cannot be used. The message is one line."""


class FormatError(DocumentError):
    """The text is not JSON, or not TOML, at all."""


def read_json(
    path: str | os.PathLike[str], kind: Any = Any, *, fix: str = "", finite: bool = True, limit: int = JSON_BYTES
) -> Any:
    """The contents of a JSON file, as a value of type `kind`.

    Args:
        path: the file; a byte order mark at its start is skipped.
        kind: the schema, see the module.
        fix: the way out of a fault, the end of its message.
        finite: refuse NaN and infinite numbers, which other programs cannot read.
        limit: most bytes.

    Raises:
        DocumentError: the contents cannot be used; `FormatError` where they are no JSON.
        OSError: the file is missing or cannot be read.
    """
    return parse_json(_bytes(path, limit, fix), kind, origin=str(path), fix=fix, finite=finite)


def parse_json(
    text: str | bytes, kind: Any = Any, *, origin: str, fix: str = "", finite: bool = True, limit: int = JSON_BYTES
) -> Any:
    """The value of a JSON text, as a value of type `kind`; `origin` names the text in messages.

    The other arguments and the errors are those of `read_json`.
    """
    if len(text) > limit:
        raise _too_long(origin, limit, fix)
    try:
        value = json.loads(_text(text), object_pairs_hook=_table)
    except RecursionError:
        raise _too_deep(origin, fix) from None
    except ValueError as error:
        raise FormatError(f"{origin} is not valid JSON: {_brief(str(error), 200)}{_end(fix)}") from None
    _check_parts(value, origin, fix, finite)
    return value if kind is Any else checked(value, kind, origin, fix)


def read_toml(path: str | os.PathLike[str], name: str = "file", *, fix: str = "") -> dict[str, Any]:
    """The contents of a TOML file; `name` is how messages call the file, such as "recipe".

    NaN, infinite numbers and dates are refused. The errors are those of `read_json`.
    """
    return parse_toml(_bytes(path, TOML_BYTES, fix), origin=f"{name} {str(path)!r}", fix=fix)


def parse_toml(text: str | bytes, *, origin: str, fix: str = "") -> dict[str, Any]:
    """The tables of a TOML text; `origin` names the text in messages. The errors are those of `read_json`."""
    if len(text) > TOML_BYTES:
        raise _too_long(origin, TOML_BYTES, fix)
    try:
        table = tomllib.loads(_text(text))
    except RecursionError:
        raise _too_deep(origin, fix) from None
    except ValueError as error:
        kind = "a text file in UTF-8" if isinstance(error, UnicodeDecodeError) else "valid TOML"
        raise FormatError(f"{origin} is not {kind}: {_brief(str(error), 200)}{_end(fix)}") from None
    _check_parts(table, origin, fix, finite=True)
    return table


def checked(value: Any, kind: Any, origin: str, fix: str = "") -> Any:
    """`value` as a value of type `kind`; DocumentError names the key inside `origin`, the value and the type."""
    try:
        return convert(value, kind)
    except ValidationError as error:
        raise DocumentError(_explain(str(error), value, origin) + _end(fix)) from None


def _bytes(path: str | os.PathLike[str], limit: int, fix: str) -> bytes:
    with open(path, "rb") as stream:
        data = stream.read(limit + 1)  # not the file's size: a pipe or a device has none
    if len(data) > limit:
        raise _too_long(str(path), limit, fix)
    return data


def _text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8-sig")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_brief(repr(twice))} stands twice in one table")
    return table


def _check_parts(value: Any, origin: str, fix: str, finite: bool) -> None:
    """DocumentError for a value inside `value` that no reader here can use: too deep, too large, not text."""
    stack: list[tuple[Any, Any, int]] = [(value, None, 0)]
    while stack:
        item, path, depth = stack.pop()
        problem = ""
        if isinstance(item, dict | list):
            if depth >= DEPTH:
                raise _too_deep(origin, fix)
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            stack += [(inner, (path, key), depth + 1) for key, inner in pairs]
            problem = (
                "" if isinstance(item, list) or _encodable("".join(item)) else "has a key that is not Unicode text"
            )
        elif isinstance(item, str):
            problem = "" if _encodable(item) else "is not Unicode text: it holds half of a surrogate pair"
        elif isinstance(item, float):
            problem = "" if math.isfinite(item) or not finite else f"must be a finite number, got {item}"
        elif isinstance(item, int):
            fits = INTEGERS[0] <= item <= INTEGERS[1]
            problem = "" if fits else f"must fit in 64 bits, got a whole number of {len(str(abs(item)))} digits"
        elif item is not None:
            problem = f"must be text in quotes, got the {type(item).__name__} {item}"
        if problem:
            raise DocumentError(f"{_join(origin, _name(path))} {problem}{_end(fix)}")


def _encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _name(path: Any) -> str:
    """A key path such as "training.report_to[1]" from linked pairs (path of the parent, key)."""
    parts: list[str] = []
    while path is not None:
        path, key = path
        parts.append(f"[{key}]" if isinstance(key, int) else f".{_brief(ascii(key)[1:-1])}")
    return "".join(reversed(parts)).lstrip(".")


def _explain(text: str, value: Any, origin: str) -> str:
    """One line of msgspec about `value`, such as "Expected `int`, got `str` - at `$.a[0]`", in this project's words."""
    text, _, path = text.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    where = _join(origin, path)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{_join(origin, f'{path}.{missing[1]}'.lstrip('.'))} is missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        return f"{where} has the unknown key {unknown[1]!r}"
    wanted = re.match(r"Expected `([^`]*)`(.*?)(?:, got .*)?$", text, re.DOTALL)
    if wanted is None:
        return f"{where}: {text}"
    words = " or ".join(WORDS.get(kind, kind) for kind in wanted[1].split(" | ") if kind != "null") or "null"
    for sign, meaning in ((">=", "of at least"), ("<=", "of at most"), (">", "above"), ("<", "below")):
        if wanted[2].startswith(f" {sign} "):
            words += f" {meaning} {wanted[2].removeprefix(f' {sign} ')}"
            break
    else:
        words += wanted[2]
    found = _at(value, path)
    got = "" if found is _NOTHING else f", got {type(found).__name__} {_brief(repr(found))}"
    return f"{where} must be {words}{got}"


_NOTHING = object()


def _at(value: Any, path: str) -> Any:
    """The value at a path of msgspec; `_NOTHING` where the path does not say which key, as `a[...]` does not."""
    for name, index in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path):
        try:
            value = value[name] if name else value[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            return _NOTHING
    return value


def _too_long(origin: str, limit: int, fix: str) -> DocumentError:
    return DocumentError(f"{origin} is longer than {limit >> 20} MiB, the most for such a file{_end(fix)}")


def _too_deep(origin: str, fix: str) -> DocumentError:
    return DocumentError(f"{origin} has more than {DEPTH} tables and lists inside each other{_end(fix)}")


def _join(origin: str, path: str) -> str:
    return origin + path if path.startswith("[") else f"{origin}: {path}" if path else origin


def _end(fix: str) -> str:
    return f"; {fix}" if fix else ""


def _brief(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]} ..."
