"""Opening a tokenizer as a Hugging Face object: bytes, nucleotides, any of Hugging Face or SentencePiece."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import DecodeError, Struct
from msgspec.json import decode

from titanslab.data.bpe import bpe_size
from titanslab.data.dna.tokenizer import DNA, dna_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = "byte"
MOST_IDS = 1 << 24  # transformers looks at every id up to the largest one, so that one id of 2**31 takes minutes


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """The byte tokenizer: byte b of the UTF-8 text is token b, then `<bos>` 256, `<eos>` 257, `<pad>` 258.

    Decoding gives back any text exactly, and text that spells `<bos>` is encoded as its letters. It is saved and
    loaded as a Hugging Face fast tokenizer, without code of this package.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer: "byte", "dna", a tokenizer.json, a SentencePiece .model, a folder or a hub name.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file, folder or hub name is not a tokenizer.
        ImportError: it is a SentencePiece model and the packages for those are missing or too old.
    """
    if name == BYTE:
        return byte_tokenizer()
    if name == DNA:
        return dna_tokenizer()
    if bpe_size(name) is not None:
        raise ValueError(
            f"tokenizer {name!r} is made of the training text by titans train; make one with "
            "titans tokenizer BOOKS --output FOLDER, and give the folder"
        )
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).exists() for file in ("tokenizer.json", "tokenizer_config.json")):
        path /= "tokenizer.model"
        if not path.exists():
            kinds = "no tokenizer.json, tokenizer_config.json or tokenizer.model"
            raise ValueError(f"tokenizer folder {name!r} holds {kinds}; save a tokenizer there, beside its model")
    if path.is_file():
        return _from_file(path)
    if path.is_dir() and (file := path / "tokenizer.json").is_file():
        _check_ids(file)
    if not path.exists() and (path.suffix in (".json", ".model") or name.startswith(("/", ".", "~")) or "\\" in name):
        raise FileNotFoundError(
            f"tokenizer {name!r} does not exist (looked for {path.absolute()}); make one with titans tokenizer BOOKS "
            f"--output {name}"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name, trust_remote_code=False)
    except Exception as error:
        found = f"{name!r} is neither 'byte' nor 'dna', nor a file or folder here, nor a tokenizer that the hub gives"
        if path.is_dir():
            found = f"folder {name!r} cannot be read"
        raise ValueError(f"tokenizer {found}: {error}") from error


def padding_id(tokenizer: Any) -> int:
    """The token for padding rows: the padding token, else the one that ends a text, else 0."""
    ids = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((i for i in ids if i is not None), 0)


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether token b is byte b for this tokenizer, so that text can be encoded without running it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(tokenizer) > 1024:
        return False
    model = json.loads(backend.to_str())
    if model.get("normalizer") is not None or not getattr(tokenizer, "split_special_tokens", False):
        return False
    return model["model"].get("merges") == [] and model["model"].get("vocab") == _byte_vocabulary()


def _from_file(path: Path) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    if path.suffix == ".json":
        _check_ids(path)
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
        except Exception as error:
            raise ValueError(f"{str(path)!r} is not a tokenizers file: {error}") from error
    if ".model" in path.suffixes:  # also tokenizer.model.v1
        return _from_sentencepiece(path)
    raise ValueError(
        f"tokenizer {str(path)!r} is of an unknown kind; give 'byte', 'dna', a tokenizer.json, a SentencePiece .model, "
        "a folder or a hub name"
    )


class _Token(Struct):
    id: int


class _Vocabulary(Struct):
    vocab: dict[str, int] | list[Any] = []  # a list gives a token its place as id


class _File(Struct):
    """The parts of a tokenizer.json that hold ids."""

    model: _Vocabulary
    added_tokens: list[_Token] | None = None


def _check_ids(path: Path) -> None:
    """ValueError if a tokenizer.json has an id that no vocabulary has; other faults are left to tokenizers."""
    try:
        parts = decode(path.read_bytes(), type=_File)
    except (DecodeError, RecursionError):
        return
    ids = [token.id for token in parts.added_tokens or ()]
    ids += parts.model.vocab.values() if isinstance(parts.model.vocab, dict) else ()
    wrong = [i for i in ids if not 0 <= i < MOST_IDS]
    if wrong:
        raise ValueError(f"{str(path)!r} has the token id {wrong[0]}; ids are from 0 to {MOST_IDS - 1:,}")


def _from_sentencepiece(path: Path) -> PreTrainedTokenizerBase:
    """A SentencePiece unigram or BPE model as a fast tokenizer with the same ids.

    Control pieces such as <s> are special tokens, but text that spells them is read as its letters, as SentencePiece
    does.
    """
    from tokenizers import Regex, pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.utils.versions import require_version

    try:
        from sentencepiece import sentencepiece_model_pb2

        require_version("transformers>=5.24")  # versions before it give other ids
    except ImportError as error:
        raise ImportError(
            f"tokenizer {str(path)!r} is a SentencePiece model: pip install 'titans-lab[sentencepiece]' ({error})"
        ) from error
    proto: Any = sentencepiece_model_pb2
    try:
        model = proto.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # DecodeError, whose package is only there with the extra
        raise ValueError(f"{str(path)!r} is not a SentencePiece model, or it is cut off") from error
    spec, kinds = model.trainer_spec, model.SentencePiece
    if not model.pieces or spec.model_type not in (spec.UNIGRAM, spec.BPE):
        raise ValueError(f"{str(path)!r} is not a SentencePiece model of type unigram or BPE; only those can be read")
    ids = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    special = {name: model.pieces[i].piece if 0 <= i < len(model.pieces) else None for name, i in ids.items()}
    control = [p.piece for p in model.pieces if p.type == kinds.CONTROL]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "tokenizer.model")
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
            extra_special_tokens=[piece for piece in control if piece not in special.values()],
            **special,
        )
    if spec.model_type == spec.UNIGRAM:
        # The search would find the text "<s>" among the pieces; a cut after its first letter leaves letters alone.
        reserved = control + [p.piece for p in model.pieces if p.type == kinds.UNKNOWN]
        cuts = "|".join(f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in reserved if len(t) > 1)
        backend = tokenizer.backend_tokenizer
        steps = [backend.pre_tokenizer, pre_tokenizers.Split(Regex(cuts), "isolated")]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def _byte_vocabulary() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary, with the byte as its id."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())  # printable bytes stand for themselves, the others follow from 256 on
    others = iter(symbol for symbol in alphabet if ord(symbol) > 255)
    return {chr(byte) if chr(byte) in alphabet else next(others): byte for byte in range(256)}
