"""Text to token shards, in a stream: sources, tokenization, filters, and continuing after a kill.

Chunking and filters follow the original DistilBERT data preparation; hold-out by document, the
removal of repetitions and resuming are additions. The manifest is rewritten after each shard and
is the point of commitment: whatever it does not list is written again, so that a killed run
continues and ends with the bytes of an uninterrupted one.
"""

from __future__ import annotations

import errno
import hashlib
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tqdm import tqdm

from ..errors import UserError
from ..files import locked, with_sha256, write_json
from ..models.vocabulary import vocabulary_sha256, vocabulary_size
from .shards import (
    FORMAT,
    SPLITS,
    Shard,
    ShardWriter,
    check_shards,
    corpus_files,
    count_tokens,
    read_manifest,
)
from .text_sources import Source

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase


MAX_VOCABULARY = 65_535  # what 16 bits number, less one
MIN_TOKENS = 11  # a sequence this short is dropped, CLS and SEP counted (original binarised data)
MAX_UNKNOWN = 0.5  # as is one with this share of unknown tokens
PIECE_CHARACTERS = 1 << 16  # longest text given to the tokenizer at once
BATCH_CHARACTERS = 1 << 19  # text tokenized at once
CACHE_CHARACTERS = 1 << 22  # about 100,000 words, 25 MB; a full cache is emptied

# BERT's pre-tokenizer always starts a new word here, so a cut changes no token. Other white space
# and control characters are left to the tokenizer, which deletes some of them.
_PUNCTUATION = r"!-/:-@\[-`{-~"
_WORD_START = re.compile(rf"[ \t\r\n{_PUNCTUATION}\u4e00-\u9fff]")
_WORD = re.compile(rf"[{_PUNCTUATION}]|[^ \t\r\n{_PUNCTUATION}]+")


class WordEncoder:
    """Token ids of texts, word by word, through a cache.

    BERT's pre-tokenizer splits at white space and around punctuation, so a text's tokens are
    those of its words in turn. Few words make up most of a text: looking them up is faster than
    tokenizing the text. New words go through the Rust tokenizer in one batch, on all cores.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        rust = getattr(tokenizer, "backend_tokenizer", None)
        if rust is None or not isinstance(rust.pre_tokenizer, BertPreTokenizer):
            raise UserError(
                f"{tokenizer.name_or_path}: not a fast BERT tokenizer; choose a checkpoint of the "
                "BERT family"
            )
        self.rust = Tokenizer.from_str(rust.to_str())
        self.rust.no_truncation()
        self.rust.no_padding()
        self.rust.encode_special_tokens = True  # "[MASK]" in a text is text, not the token
        self.cache: dict[str, bytes] = {}
        self.cached = 0  # characters

    def encode(self, texts: list[str]) -> list[bytes]:
        """The ids of each text as little-endian 16-bit bytes, without CLS and SEP."""
        words = [_WORD.findall(text) for text in texts]
        if self.cached > CACHE_CHARACTERS:
            self.cache.clear()
            self.cached = 0
        new = list(set(chain.from_iterable(words)).difference(self.cache))
        encodings = self.rust.encode_batch_fast(new, add_special_tokens=False)
        for word, encoding in zip(new, encodings):
            self.cache[word] = np.array(encoding.ids, dtype="<u2").tobytes()
            self.cached += len(word) + 32  # a short word costs memory too
        return [b"".join(map(self.cache.__getitem__, split)) for split in words]


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text before white space, punctuation or a CJK character.

    A word of over 1,024 characters, unknown to WordPiece anyway, is cut where the piece ends.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        match = _WORD_START.search(text, end - 1024, end)
        end = match.start() if match else end
        yield text[start:end]
        start = end
    yield text[start:]


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split: its hash, as a number in [0, 1), decides.

    Equal documents land in the same split, whatever their order.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def encode_documents(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, validation_fraction: float = 0.0
) -> Iterator[tuple[bool, np.ndarray]]:
    """Yield (held out, uint16 ids without CLS and SEP) of each document, in order.

    Texts are taken in batches bounded in characters, so that memory is too.
    """
    encoder = WordEncoder(tokenizer)
    parts: list[bytes] = []
    for batch in _batches(documents, validation_fraction):
        for ids, (_, held_out) in zip(encoder.encode([text for text, _ in batch]), batch):
            parts.append(ids)
            if held_out is not None:
                yield held_out, np.frombuffer(b"".join(parts), "<u2")
                parts.clear()


def _batches(
    documents: Iterable[str], validation_fraction: float
) -> Iterator[list[tuple[str, bool | None]]]:
    """Batches of (text, held out); held out is None while the document goes on in the next text."""
    batch: list[tuple[str, bool | None]] = []
    characters = 0
    for document in documents:
        pieces = list(_pieces(document))
        ends = [None] * (len(pieces) - 1) + [is_held_out(document, validation_fraction)]
        for piece, end in zip(pieces, ends):
            batch.append((piece, end))
            characters += len(piece) + 64  # an empty text costs memory too
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


class _Sequencer:
    """Cuts documents into sequences and decides which of them stay.

    Repetitions are known by 8-byte BLAKE2b digests in a temporary SQLite database: 4 MiB of
    memory at any size of the corpus (a Python set takes about 70 bytes a sequence) and about 20
    bytes of disk a sequence. Of n sequences one is lost to a chance collision with probability
    n^2 / 2^65, below 1e-4 for 40 million.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.cls = np.array(tokenizer.cls_token_id, dtype="<u2").tobytes()
        self.sep = np.array(tokenizer.sep_token_id, dtype="<u2").tobytes()
        self.unknown = tokenizer.unk_token_id
        self.max_length = max_length
        self.seen = sqlite3.connect("", isolation_level=None)
        self.seen.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-4096;"
            "CREATE TABLE seen (digest INTEGER PRIMARY KEY); BEGIN;"
        )

    def remember(self, sequence: bytes) -> bool:
        """Note a sequence; True if it is new."""
        digest = hashlib.blake2b(sequence, digest_size=8).digest()
        number = int.from_bytes(digest, "little", signed=True)
        insert = "INSERT OR IGNORE INTO seen VALUES (?)"
        try:
            return self.seen.execute(insert, (number,)).rowcount == 1
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, str(error), tempfile.gettempdir()) from None

    def cut(self, ids: np.ndarray) -> Iterator[tuple[bytes, str | None]]:
        """Yield (sequence with CLS and SEP, why it is dropped or None) for a document's ids."""
        content = self.max_length - 2
        for start in range(0, max(len(ids), 1), content):
            chunk = ids[start : start + content]
            sequence = self.cls + chunk.tobytes() + self.sep
            reason = None
            if len(chunk) + 2 <= MIN_TOKENS:
                reason = "short"
            elif np.count_nonzero(chunk == self.unknown) >= MAX_UNKNOWN * (len(chunk) + 2):
                reason = "unknown"
            elif not self.remember(sequence):
                reason = "duplicate"
            yield sequence, reason


def _differences(state: dict, settings: dict, key: str | None) -> list[str]:
    """What an earlier run did otherwise; empty when this one may go on with it."""
    old = state["settings"]
    different = sorted(k for k in old.keys() | settings if old.get(k) != settings.get(k))
    if not different and (state["format"], state.get("key")) != (FORMAT, key):
        return ["format or recipe"]
    return different


def _begin(folder: Path, settings: dict, key: str | None) -> dict:
    """The manifest of an earlier run that this one goes on with, or a new one, written."""
    old = read_manifest(folder)
    if old is None and (foreign := next(corpus_files(folder), None)):
        raise UserError(f"{foreign}: is there, and no manifest lists it; choose another folder")
    if old is not None:
        different = _differences(old, settings, key)
        if not different:  # equal ones may be written otherwise: 512.0, or no key for None
            return old | {"settings": settings}
        if key is None and old["commits"]:
            raise UserError(
                f"{folder}: holds a corpus made otherwise ({', '.join(different)} differs); choose "
                "another output folder or delete this one"
            )
    state = {
        "format": FORMAT,
        "key": key,
        "complete": False,
        "commits": 0,
        "settings": settings,
        "dropped": {"short": 0, "unknown": 0, "duplicate": 0},
        "splits": {
            split: {"documents": 0, "sequences": 0, "tokens": 0, "shards": []} for split in SPLITS
        },
    }
    if key is not None:  # the stamp of the recipe's cell is of the corpus before
        (folder / "record.json").unlink(missing_ok=True)
    # First: what the old one lists is then no corpus.
    write_json(folder / "manifest.json", with_sha256(state))
    splits = old["splits"].values() if old else ()
    for shard in chain.from_iterable(split["shards"] for split in splits):
        for suffix in ("bin", "idx"):
            (folder / f"{shard['name']}.{suffix}").unlink(missing_ok=True)
    return state


def _total(state: dict, key: str) -> int:
    return sum(state["splits"][split][key] for split in SPLITS)


def prepare_corpus(
    folder: Path,
    sources: list[Source],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 512,
    validation_fraction: float = 0.01,
    limit_tokens: int | None = None,
    shard_tokens: int = 1 << 24,
    key: str | None = None,
    progress: bool = False,
) -> dict:
    """Tokenise `sources` into shards under `folder` and return the manifest.

    Documents are cut into sequences of at most `max_length` tokens with CLS and SEP; those of 11
    tokens or fewer, those at least half unknown, and exact repetitions are dropped. The run ends
    with the first sequence that reaches `limit_tokens`. Called again with the same arguments it
    continues after the last complete shard, or returns at once. A corpus with a `key`, that of a
    recipe's cell, makes room for one of another key.

    Raises UserError for an empty corpus, a vocabulary beyond 16 bits, unreadable sources, a folder
    that holds a corpus made with other settings, files of a corpus' names without its manifest,
    and while another process writes there.
    """
    folder = Path(folder)
    vocab_size = vocabulary_size(tokenizer)
    if vocab_size > MAX_VOCABULARY:
        raise UserError(
            f"vocabulary of {vocab_size:,} tokens: 16-bit shards hold {MAX_VOCABULARY:,}; "
            "choose a smaller tokenizer"
        )
    if not (
        0 <= validation_fraction < 1
        and MIN_TOKENS < max_length < 1 << 16
        and 0 < shard_tokens <= 1 << 30
    ):
        raise UserError(
            f"validation fraction {validation_fraction}, maximum length {max_length}, shard tokens "
            f"{shard_tokens}: need 0 <= fraction < 1, {MIN_TOKENS} < length < 65536 (16 bits), "
            "0 < shard tokens <= 2**30"
        )
    name = tokenizer.name_or_path or type(tokenizer).__name__
    settings = {
        "sources": [source.identity for source in sources],
        "tokenizer": Path(name).name if Path(name).is_absolute() else name,
        "vocabulary_sha256": vocabulary_sha256(tokenizer),
        "vocab_size": vocab_size,
        "max_length": max_length,
        "validation_fraction": validation_fraction,
        "limit_tokens": limit_tokens,
        "shard_tokens": shard_tokens,
    }
    state = read_manifest(folder)
    if not (state and state["complete"] and not _differences(state, settings, key)):
        with locked(folder):
            state = _begin(folder, settings, key)
            if not state["complete"]:
                _complete(folder, state, sources, tokenizer, progress)
                return state
    check_shards(folder, state)
    return state


def _complete(
    folder: Path,
    state: dict,
    sources: list[Source],
    tokenizer: PreTrainedTokenizerBase,
    progress: bool,
) -> None:
    """Write all that the manifest `state` does not list yet, the manifest last."""
    documents = chain.from_iterable(source.read() for source in sources)
    _write_shards(folder, state, documents, tokenizer, progress)
    if not state["splits"]["train"]["sequences"]:
        drops = ", ".join(f"{number} {reason}" for reason, number in state["dropped"].items())
        raise UserError(
            f"{_describe(sources)}: no training sequence is left of {_total(state, 'documents')} "
            f"documents (dropped: {drops}); give more or longer text"
        )
    settings, shards = state["settings"], state["splits"]["train"]["shards"]
    counts = count_tokens(folder, shards, settings["vocab_size"])
    vocabulary = {"vocabulary_sha256": settings["vocabulary_sha256"], "split": "train"}
    counted = vocabulary | {"counts": counts.tolist()}
    write_json(folder / "counts.json", with_sha256(counted))
    state["complete"] = True
    write_json(folder / "manifest.json", with_sha256(state))


def _describe(sources: list[Source]) -> str:
    return ", ".join(source.identity["source"] for source in sources)


def _write_shards(
    folder: Path,
    state: dict,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    progress: bool,
) -> None:
    """Write what the manifest `state` does not list yet, committing shard by shard.

    Shard k of both splits comes from the same run of documents, so one number, the documents
    read, says where to go on.
    """
    settings = state["settings"]
    check_shards(folder, state, checksums=True)
    for leftover in corpus_files(folder):  # what a killed run was writing
        if leftover.suffix == ".tmp":
            leftover.unlink()
    writers: dict[str, ShardWriter] = {}

    def commit() -> None:
        for split, writer in writers.items():
            state["splits"][split]["shards"].append(writer.commit())
        writers.clear()
        state["commits"] += 1
        write_json(folder / "manifest.json", with_sha256(state))

    tokens = committed = _total(state, "tokens")
    limit = settings["limit_tokens"] or float("inf")
    encoded = encode_documents(
        islice(documents, _total(state, "documents"), None),
        tokenizer,
        settings["validation_fraction"],
    )
    with ExitStack() as opened:
        sequencer = _Sequencer(tokenizer, settings["max_length"])
        opened.enter_context(closing(sequencer.seen))
        for shard in chain.from_iterable(state["splits"][split]["shards"] for split in SPLITS):
            for sequence in Shard(folder, shard):
                sequencer.remember(sequence.tobytes())
        bar = opened.enter_context(
            tqdm(
                desc="preparing",
                unit=" tokens",
                unit_scale=True,
                disable=not progress,
                total=settings["limit_tokens"],
                initial=tokens,
            )
        )
        for held_out, ids in encoded:
            if tokens >= limit:
                break
            name = SPLITS[held_out]
            split = state["splits"][name]
            split["documents"] += 1
            for sequence, reason in sequencer.cut(ids):
                if reason:
                    state["dropped"][reason] += 1
                    continue
                if name not in writers:
                    writers[name] = ShardWriter(folder / f"{name}-{state['commits']:05d}")
                    opened.enter_context(writers[name].file)
                writers[name].append(sequence)
                split["sequences"] += 1
                split["tokens"] += len(sequence) // 2
                tokens += len(sequence) // 2
                if tokens >= limit:
                    break
            bar.update(tokens - bar.n)
            if tokens - committed >= settings["shard_tokens"]:
                commit()
                committed = tokens
        if writers:
            commit()
