"""The documents on which the controls of a graft are measured."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from titanslab.data.encode import TextEncoder

LOOKED_AT = 200  # documents from which the longest are taken


def longest_documents(texts: Iterable[str], tokenizer: Any, count: int, tokens: int) -> list[np.ndarray]:
    """The ids of the `count` longest of the first `LOOKED_AT` texts, each cut after `tokens + 1` tokens.

    Raises:
        ValueError: no text has two tokens.
    """
    encoder = TextEncoder(tokenizer)
    found: list[np.ndarray] = []
    for text in islice(texts, LOOKED_AT):
        ids = np.asarray([*encoder.start, *encoder.encode([text])[0].tolist()], dtype=np.int64)[: tokens + 1]
        if len(ids) > 1:
            found.append(ids)
        if sum(len(ids) > tokens for ids in found) >= count:
            break
    if not found:
        raise ValueError("the text holds no token to predict; give more text")
    return sorted(found, key=len, reverse=True)[:count]
