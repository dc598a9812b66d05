"""Split text into sentences by rule, without a model or a download, and equally on every machine."""

import re

_END = re.compile(r"[.!?…][\"'”’)\]]*(\s+)(?=[\"'“‘(\[]*[A-ZÀ-ÖØ-Þ0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Sr|Jr|Messrs|Mme|Mlle|vs|No|Vol|Fig|Mt)"
    r"|(?:\b|\.)[A-Z])\.$"
)


def sentence_starts(text: str) -> list[int]:
    """Character offsets at which the sentences of `text` begin; the first is 0."""
    starts = [0]
    for match in _END.finditer(text):
        head = text[max(0, match.start() - 9) : match.start() + 1]
        if not _ABBREVIATION.search(head):
            starts.append(match.end(1))
    return starts


def split_sentences(text: str, max_chars: int = 1000) -> list[str]:
    """The sentences of a book. A paragraph break ends a sentence, and white space within one becomes a single space.

    Args:
        text: running text.
        max_chars: a longer piece without a sentence end, such as a table, is cut at a space.
    """
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        starts = sentence_starts(flat)
        for start, end in zip(starts, [*starts[1:], len(flat)], strict=True):
            sentence = flat[start:end].strip()
            while len(sentence) > max_chars:
                cut = sentence.rfind(" ", 1, max_chars)
                cut = cut if cut > 0 else max_chars
                sentences.append(sentence[:cut].strip())
                sentence = sentence[cut:].strip()
            if sentence:
                sentences.append(sentence)
    return sentences
