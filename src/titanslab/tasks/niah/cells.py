"""The result table of S-NIAH: its cells and its score."""

from collections.abc import Sequence
from functools import partial

from titanslab.data.encode import TokenCounter
from titanslab.data.text import iter_texts
from titanslab.files import file_identity
from titanslab.tasks.niah import VARIANTS
from titanslab.tasks.niah.samples import NIAH, word_lists
from titanslab.tasks.sample import Cell, TaskSample, split_names


def niah_cells(
    variant: str | None,
    lengths: Sequence[int],
    counter: TokenCounter,
    counter_name: str,
    *,
    haystack: str | None = None,
    adjectives: str | None = None,
    nouns: str | None = None,
    seed: int = 42,
) -> list[Cell]:
    """Cells of S-NIAH, one per variant and length.

    Args:
        variant: one variant, or several with commas; None = all with a haystack, else `single_1`.
        lengths: in tokens.
        counter: measures the length.
        counter_name: identity of the counter's tokenizer, part of the cells' settings.
        haystack: path of running text; needed by single_2 and single_3.
        adjectives: path of a word list for the first halves of the keys.
        nouns: path of a word list for the second halves.
        seed: of the samples.
    """
    chosen = split_names(variant or ("single_1" if haystack is None else ",".join(VARIANTS)), VARIANTS, "variant")
    lists = word_lists(adjectives, nouns)
    texts = None if haystack is None else list(iter_texts(haystack))
    paths = {"adjectives": adjectives, "nouns": nouns, "haystack": haystack}
    made_of = {name: file_identity(path) for name, path in paths.items() if path is not None}
    cells = []
    for one in chosen:
        own = None if one == "single_1" and len(chosen) > 1 else texts
        maker = NIAH(one, counter, haystack=own, **lists)
        settings = {"seed": seed, "variant": one, "tokenizer_for_length": counter_name}
        settings |= {name: identity for name, identity in made_of.items() if own or name != "haystack"}
        for length in lengths:
            maker.num_units(length)  # raises for a length that is too short, before any model is loaded
            make = partial(maker.sample, length, seed=seed)
            cells.append(Cell(maker.name, length, make, score, {**settings, "length": length}))
    return cells


def score(sample: TaskSample, output: str) -> dict[str, float]:
    """`contained`: 1.0 if the output contains the reference answer, in upper or lower case, else 0.0."""
    return {"contained": float(sample.target.lower() in output.lower())}
