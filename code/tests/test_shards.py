"""Shards of a corpus: what is read back, and what damaged ones are told to be."""

import hashlib
import json

import numpy as np
import pytest
from corpora import (
    TEXTS,
    manifest_changed,
    naive_sequences,
    prepare,
)

from distilbert_kit.corpus.shards import open_shards
from distilbert_kit.errors import UserError
from distilbert_kit.files import with_sha256
from distilbert_kit.models.tokenizers import get_tokenizer


def test_reading(tmp_path):
    prepare(tmp_path, TEXTS, shard_tokens=300)
    shards = open_shards(tmp_path)
    assert shards[0].dtype == np.uint16
    assert np.array_equal(shards[-1], shards[len(shards) - 1])
    with pytest.raises(ValueError, match="read-only"):
        shards[0][0] = 1
    with pytest.raises(IndexError):
        shards[len(shards)]


def test_files_are_plain_little_endian(tmp_path):
    prepare(tmp_path, TEXTS)
    tokens = np.fromfile(tmp_path / "train-00000.bin", dtype="<u2")
    expected = naive_sequences(TEXTS, 512)
    assert tokens.tolist() == [token for sequence in expected for token in sequence]
    assert (tmp_path / "train-00000.bin").stat().st_size == 2 * sum(map(len, expected))


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_shard_cut_short(tmp_path, suffix):
    prepare(tmp_path, TEXTS)
    path = tmp_path / f"train-00000.{suffix}"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"train-00000\.{suffix}: .* the manifest says"):
        open_shards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="0 bytes"):
        open_shards(tmp_path)


def test_altered_shard_is_found_by_checksum(tmp_path):
    prepare(tmp_path, TEXTS)
    path = tmp_path / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[100:102] = b"\xff\xff"  # no token of the vocabulary
    path.write_bytes(data)
    open_shards(tmp_path)
    with pytest.raises(UserError, match="SHA-256"):
        open_shards(tmp_path, checksums=True)
    manifest_changed(tmp_path, lambda content: content.update(complete=False))
    with pytest.raises(UserError, match="SHA-256"):  # nor is it gone on with
        prepare(tmp_path, TEXTS)


def test_counts_of_another_vocabulary(tmp_path):
    prepare(tmp_path, TEXTS)
    other = get_tokenizer("bert-base-uncased")
    other.add_tokens(["extraordinarily-new"])
    with pytest.raises(UserError, match="not this tokenizer"):
        open_shards(tmp_path, "train", other)
    counts = json.loads((tmp_path / "counts.json").read_text())
    counts["vocabulary_sha256"] = hashlib.sha256(b"other").hexdigest()
    (tmp_path / "counts.json").write_text(json.dumps(with_sha256(counts)))
    with pytest.raises(UserError, match="another vocabulary"):
        open_shards(tmp_path)


def test_missing_split_and_folder(tmp_path):
    prepare(tmp_path, TEXTS)
    with pytest.raises(UserError, match="no validation sequences"):
        open_shards(tmp_path, "validation")
    with pytest.raises(UserError, match=r"run prepare_corpus\.py first"):
        open_shards(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_shards(tmp_path)


def test_another_format_and_splits_without_text_are_told_as_they_are(tmp_path):
    prepare(tmp_path, TEXTS)
    with pytest.raises(UserError, match="no split 'test'; choose from train, validation"):
        open_shards(tmp_path, "test")
    none = {"sequences": 0, "tokens": 0, "shards": []}
    manifest_changed(tmp_path, lambda content: content["splits"]["train"].update(none))
    with pytest.raises(UserError, match="no train sequences; prepare it from more text"):
        open_shards(tmp_path)
    manifest_changed(tmp_path, lambda content: content.update(format=2))
    with pytest.raises(UserError, match="a corpus of format 2, not 1; delete it"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["splits"]["train"]["shards"][0].update(sequences=0, tokens=0),
            r"splits\.train\.shards\.0\.sequences: Input should be greater than 0",
        ),
        (
            lambda content: content["splits"]["train"].update(shards=[]),
            r"splits\.train: sequences are not the sum of its shards'",
        ),
        (
            lambda content: content["splits"]["train"].update(tokens=0),
            r"splits\.train: tokens are not the sum of its shards'",
        ),
        (
            lambda content: content["splits"]["train"].update(documents=1 << 62),
            r"splits\.train\.documents: Input should be less than",
        ),
        (lambda content: content["splits"].update(test=True), r"splits\.test: Extra inputs"),
        (lambda content: content["dropped"].pop("short"), r"dropped\.short: Field required"),
    ],
)
def test_a_manifest_that_is_none_of_this_kit(tmp_path, change, message):
    prepare(tmp_path, TEXTS)
    manifest_changed(tmp_path, lambda content: content.update(complete=False))
    manifest_changed(tmp_path, change)
    with pytest.raises(UserError, match=message):
        open_shards(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, TEXTS)
