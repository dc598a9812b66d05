"""Encoding in several processes: groups of texts go to the processes, and their ids come back in the same order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from titanslab.data.encode import TextEncoder

AHEAD = 3  # groups that wait for each process
PARALLELISM = "TOKENIZERS_PARALLELISM"  # read by the package tokenizers at each call
BYTES_A_PROCESS = 8_000_000  # of text, for which a process is started
T = TypeVar("T")
_encoder: TextEncoder  # of a process of the pool


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sensible_processes(most: int, amount: int | None) -> int:
    """At most `most` processes, of which a small corpus of `amount` bytes takes fewer; None = of unknown size."""
    return most if amount is None else max(1, min(most, amount // BYTES_A_PROCESS))


def encoded(
    groups: Iterable[tuple[T, Sequence[str]]], encoder: TextEncoder, processes: int = 1
) -> Iterator[tuple[T, list[np.ndarray]]]:
    """The ids [T] of each text of each group, without special tokens; what stands beside a group comes with its ids.

    Args:
        groups: read as far as the processes are fed.
        processes: one thread each; 1 = this process alone. Others are started anew, so that a program that is not
            guarded by `if __name__ == "__main__"` must leave it at 1.

    Raises:
        ValueError: a process was killed.
    """
    if processes == 1 or encoder.by_table:
        plain = TextEncoder(_plain(encoder.tokenizer)) if not encoder.by_table else encoder
        for name, texts in groups:
            with _one_thread():
                rows = plain.encode(texts)
            yield name, [ids.astype(encoder.dtype, copy=False) for ids in rows]
        return
    waiting: deque[tuple[T, Future[list[np.ndarray]]]] = deque()
    made = _packed(encoder.tokenizer)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (made, encoder.dtype.str))
    try:
        for name, texts in groups:
            waiting.append((name, pool.submit(_encode, texts)))
            if len(waiting) >= AHEAD * processes:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    except BrokenProcessPool:
        raise ValueError(
            "a process that encodes texts was killed, as happens where memory runs out; use fewer processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _first(waiting: deque[tuple[T, Future[list[np.ndarray]]]]) -> tuple[T, list[np.ndarray]]:
    name, future = waiting.popleft()
    return name, future.result()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the package tokenizers to one thread."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


def _plain(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` that gives the same ids, which is faster alone; where there is none, the tokenizer."""
    packed = _packed(tokenizer)
    return tokenizer if packed is tokenizer else _unpacked(packed)


def _packed(tokenizer: Any) -> Any:
    """The contents of `_plain(tokenizer)`, without a class of transformers; where there is none, the tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    from transformers import PreTrainedTokenizerFast

    # the few classes that change the text before their backend sees it have methods of their own
    methods = ("_encode_plus", "_batch_encode_plus", "__call__")
    if any(getattr(type(tokenizer), m, None) is not getattr(PreTrainedTokenizerFast, m, None) for m in methods):
        return tokenizer
    return backend.to_str(), bool(tokenizer.split_special_tokens)


def _unpacked(packed: Any) -> Any:
    if not isinstance(packed, tuple):
        return packed
    from tokenizers import Tokenizer

    text, split_special_tokens = packed
    made = Tokenizer.from_str(text)
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = split_special_tokens
    return made


def _begin(packed: Any, dtype: str) -> None:
    """Begin a process of the pool."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process, and the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[PARALLELISM] = "false"
    _encoder = TextEncoder(_unpacked(packed))
    _encoder.dtype = np.dtype(dtype)


def _end_with_parent() -> None:
    """End this process when the first one has ended, which may have been killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(texts: Sequence[str]) -> list[np.ndarray]:
    return _encoder.encode(texts)
