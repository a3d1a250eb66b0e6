"""The shard format: 16-bit token ids on disk, memory-mapped for reading.

A prepared folder holds

- `<split>-<k>.bin`: token ids, little-endian uint16, one sequence after another, with CLS and SEP;
- `<split>-<k>.idx`: little-endian uint32, where each sequence starts, then the number of tokens;
- `counts.json`: how often each token occurs in the training split, and the vocabulary's hash;
- `manifest.json`: settings, sources, counts, drops by reason, the SHA-256 of every shard.
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from ..errors import UserError, refusing
from ..files import cached_sha256, without_sha256, write_atomically
from ..foreign import read_json
from ..models.vocabulary import vocabulary_sha256

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
SPLITS = ("train", "validation")
_NAMES = re.compile(rf"counts\.json|({'|'.join(SPLITS)})-\d{{5}}\.(bin|idx|bin\.tmp)")


def corpus_files(folder: Path) -> Iterator[Path]:
    """The files of a folder that have a name of the format, but the manifest."""
    return (path for path in sorted(folder.glob("*")) if _NAMES.fullmatch(path.name))


_Count = Annotated[int, Field(ge=0, lt=2**62)]  # the sum of two is in 64 bits


class _Sha256(BaseModel):
    bin: str
    idx: str


class _ShardEntry(BaseModel):
    # Files are written and removed by it: a path would lead elsewhere.
    name: str = Field(pattern=rf"^({'|'.join(SPLITS)})-\d{{5}}$")
    sequences: PositiveInt
    tokens: PositiveInt
    sha256: _Sha256


class _Split(BaseModel):
    documents: _Count
    sequences: _Count
    tokens: _Count
    shards: list[_ShardEntry]

    @model_validator(mode="after")
    def _adds_up(self) -> _Split:
        for name in ("sequences", "tokens"):
            if getattr(self, name) != sum(getattr(shard, name) for shard in self.shards):
                raise ValueError(f"{name} are not the sum of its shards'")
        return self


class _Splits(BaseModel):
    model_config = ConfigDict(extra="forbid")
    train: _Split
    validation: _Split


class _Settings(BaseModel):
    tokenizer: str
    vocabulary_sha256: str


class _Dropped(BaseModel):
    short: _Count
    unknown: _Count
    duplicate: _Count


class _Manifest(BaseModel):
    format: int
    key: str | None = None
    complete: bool
    commits: _Count
    settings: _Settings
    dropped: _Dropped
    splits: _Splits


class _Counts(BaseModel):
    vocabulary_sha256: str
    counts: list[_Count]


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a folder, or None; UserError when what has its name is none of this kit."""
    path = folder / "manifest.json"
    if not os.path.lexists(path):
        return None
    found = read_json(path, "prepare the corpus again")
    with refusing(path, "no corpus of this kit", "choose another folder"):
        _Manifest.model_validate(found, strict=True)
    return _unchanged(found, path)


def _unchanged(found: dict, path: Path) -> dict:
    try:
        return without_sha256(found)
    except ValueError as error:
        raise UserError(f"{path}: {error}; delete {path.parent}, prepare it again") from None


def _read_counts(path: Path) -> tuple[str, np.ndarray]:
    """The hash of the vocabulary, and how often each of its tokens occurs."""
    advice = "prepare the corpus again"
    content = read_json(path, advice)
    try:
        found = _Counts.model_validate(content, strict=True)
    except ValidationError:
        raise UserError(f"{path}: not the counts of tokens; {advice}") from None
    _unchanged(content, path)
    return found.vocabulary_sha256, np.array(found.counts, dtype=np.int64)


class ShardWriter:
    """Appends sequences to a temporary file; `commit` gives the shard its name."""

    def __init__(self, stem: Path):
        self.stem = stem
        self.offsets = [0]
        self.sha256 = hashlib.sha256()
        self.temporary = stem.with_name(stem.name + ".bin.tmp")
        self.file = self.temporary.open("wb")

    def append(self, sequence: bytes) -> None:
        """Write one sequence of little-endian uint16 ids."""
        self.file.write(sequence)
        self.sha256.update(sequence)
        self.offsets.append(self.offsets[-1] + len(sequence) // 2)

    def commit(self) -> dict:
        """Sync and name the files; return the shard's entry in the manifest."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.temporary.replace(f"{self.stem}.bin")
        index = np.array(self.offsets, dtype="<u4").tobytes()
        write_atomically(Path(f"{self.stem}.idx"), index)
        return {
            "name": self.stem.name,
            "sequences": len(self.offsets) - 1,
            "tokens": self.offsets[-1],
            "sha256": {"bin": self.sha256.hexdigest(), "idx": hashlib.sha256(index).hexdigest()},
        }


def count_tokens(folder: Path, shards: list[dict], vocab_size: int) -> np.ndarray:
    """Occurrences [V] of each token, read in blocks: bincount widens 16 bits to 64."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in shards:
        with (folder / f"{shard['name']}.bin").open("rb") as file:
            while block := file.read(1 << 20):
                counts += np.bincount(np.frombuffer(block, "<u2"), minlength=vocab_size)
    return counts


def check_shards(folder: Path, state: dict, checksums: bool = False) -> None:
    """Raise UserError unless every shard is there, whole, and (with checksums) unchanged."""
    for shard in chain.from_iterable(state["splits"][split]["shards"] for split in SPLITS):
        sizes = {"bin": 2 * shard["tokens"], "idx": 4 * (shard["sequences"] + 1)}
        for suffix, size in sizes.items():
            path = folder / f"{shard['name']}.{suffix}"
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise UserError(
                    f"{path}: {found:,} bytes, the manifest says {size:,}; delete {folder} and "
                    "prepare the corpus again"
                )
            if checksums and cached_sha256(path) != shard["sha256"][suffix]:
                raise UserError(
                    f"{path}: SHA-256 differs from the manifest's; delete {folder} and prepare "
                    "the corpus again"
                )


class Shard:
    """One shard, memory-mapped; iterates over its sequences."""

    def __init__(self, folder: Path, entry: dict):
        self.tokens = np.memmap(folder / f"{entry['name']}.bin", "<u2", "r")
        self.offsets = np.memmap(folder / f"{entry['name']}.idx", "<u4", "r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


class TokenShards(Sequence[np.ndarray]):
    """The sequences of one split. `shards[i]` is a read-only uint16 view [length] on the disk.

    `lengths` [N] uint16 has the tokens of each sequence, CLS and SEP included; `token_counts` [V]
    int64 the occurrences in the training split.
    """

    def __init__(self, folder: Path, entries: list[dict], token_counts: np.ndarray):
        self.token_counts = token_counts
        self._shards = [Shard(folder, entry) for entry in entries]
        self._ends = list(accumulate(map(len, self._shards)))
        self.lengths = np.concatenate(
            [np.diff(shard.offsets).astype(np.uint16) for shard in self._shards]
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        index %= len(self)
        shard = bisect_right(self._ends, index)
        return self._shards[shard][index - (self._ends[shard - 1] if shard else 0)]


def open_shards(
    folder: Path,
    split: str = "train",
    tokenizer: PreTrainedTokenizerBase | None = None,
    checksums: bool = False,
) -> TokenShards:
    """Open a split of a prepared corpus.

    Raises UserError when the preparation is unfinished, a shard is missing, cut short or (looked
    at with `checksums`) altered, the format is another, the split is unknown or empty, or the token
    counts or `tokenizer` belong to another vocabulary.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise UserError(f"{folder}: no split {split!r}; choose from {', '.join(SPLITS)}")
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: no corpus; run prepare_corpus.py first")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{folder}: a corpus of format {manifest['format']}, not {FORMAT}; delete it and "
            "prepare it again"
        )
    if not manifest["complete"]:
        raise UserError(f"{folder}: preparation unfinished; run prepare_corpus.py again")
    check_shards(folder, manifest, checksums)
    vocabulary, counts = _read_counts(folder / "counts.json")
    expected = manifest["settings"]["vocabulary_sha256"]
    if vocabulary != expected:
        raise UserError(
            f"{folder / 'counts.json'}: counts of another vocabulary; prepare the corpus again"
        )
    if tokenizer is not None and vocabulary_sha256(tokenizer) != expected:
        raise UserError(
            f"{folder}: made with the vocabulary of {manifest['settings']['tokenizer']}, not this "
            "tokenizer's; prepare a corpus with the one in use"
        )
    if not manifest["splits"][split]["sequences"]:
        how = "from more text" if split == "train" else "with a larger --validation-fraction"
        raise UserError(f"{folder}: no {split} sequences; prepare it {how}")
    return TokenShards(folder, manifest["splits"][split]["shards"], counts)
