"""Lists of lengths and of names as a command line or a study gives them."""

from collections.abc import Sequence

from titanslab.tasks.sample import parse_length


def split_lengths(text: str, kilo: int) -> list[int]:
    """Lengths in tokens from a text such as `2k,4k,1M`, without repeats.

    Args:
        text: lengths with commas between them; see `parse_length`.
        kilo: number of tokens that `k` means.
    """
    return list(dict.fromkeys(parse_length(part, kilo) for part in _parts(text, "lengths")))


def split_names(text: str, known: Sequence[str], name: str) -> list[str]:
    """Names from a text such as `a,b` or, for a range, `qa1-qa5`, without repeats.

    Args:
        text: names with commas between them.
        known: all names in their order; ValueError for any other.
        name: the option that `text` comes from, for the error.
    """
    names: list[str] = []
    for part in _parts(text, name):
        first, dash, last = part.partition("-")
        if dash and first in known and last in known and known.index(first) <= known.index(last):
            names += known[known.index(first) : known.index(last) + 1]
        elif part in known:
            names.append(part)
        else:
            raise ValueError(f"{name} has {part!r}; it must be one or more of {', '.join(known)}, with commas")
    return list(dict.fromkeys(names))


def _parts(text: str, name: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{name} is {text!r}; give one or more, with commas")
    return parts
