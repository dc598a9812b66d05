"""From texts to rows of tokens: corpora, tokenizers, packing, and the order of the rows in a run."""

from titanslab.data.corpus import open_corpus
from titanslab.data.encode import TextEncoder
from titanslab.data.order import collate
from titanslab.data.tokenizer import byte_tokenizer, load_tokenizer, padding_id
from titanslab.data.tokens import tokenize

__all__ = ["TextEncoder", "byte_tokenizer", "collate", "load_tokenizer", "open_corpus", "padding_id", "tokenize"]
