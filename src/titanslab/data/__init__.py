"""From texts to rows of tokens: corpora, tokenizers, packing, and the order of the rows in a run."""

from titanslab.data.corpus import Corpus, open_corpus
from titanslab.data.encode import TextEncoder
from titanslab.data.order import MixedRows, RowStream, RunRows, ShuffledRows, collate
from titanslab.data.packing import DocumentRows, PackedRows, Row, Rows, make_row
from titanslab.data.tokenizer import byte_tokenizer, is_byte_tokenizer, load_tokenizer, padding_id
from titanslab.data.tokens import Tokens, tokenize

__all__ = [
    "Corpus",
    "DocumentRows",
    "MixedRows",
    "PackedRows",
    "Row",
    "RowStream",
    "Rows",
    "RunRows",
    "ShuffledRows",
    "TextEncoder",
    "Tokens",
    "byte_tokenizer",
    "collate",
    "is_byte_tokenizer",
    "load_tokenizer",
    "make_row",
    "open_corpus",
    "padding_id",
    "tokenize",
]
