"""Corpus preparation: against naive code, real kills and other people's folders."""

import json
import signal
import sqlite3
import time
import tracemalloc

import numpy as np
import psutil
import pytest
from corpora import (
    TEXTS,
    TOKENIZER,
    contents,
    ids_of,
    manifest_changed,
    naive_sequences,
    prepare,
    run_script,
    sentence,
    texts_source,
)

from distilbert_kit.corpus import prepare as corpus
from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.shards import open_shards, read_manifest
from distilbert_kit.corpus.text_sources import Source, open_source
from distilbert_kit.errors import UserError
from distilbert_kit.models.tokenizers import get_tokenizer

# --- sequences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [512, 64])
@pytest.mark.parametrize("shard_tokens", [1 << 24, 300])
def test_sequences_equal_the_naive_ones(tmp_path, max_length, shard_tokens):
    manifest = prepare(tmp_path, TEXTS, max_length=max_length, shard_tokens=shard_tokens)
    shards = open_shards(tmp_path, "train", TOKENIZER, checksums=True)
    expected = naive_sequences(TEXTS, max_length)
    assert [sequence.tolist() for sequence in shards] == expected
    assert shards.lengths.tolist() == [len(sequence) for sequence in expected]
    assert max(shards.lengths) == max_length
    counts = np.bincount(np.concatenate(expected), minlength=len(TOKENIZER))
    assert np.array_equal(shards.token_counts, counts)
    train = manifest["splits"]["train"]
    assert train["tokens"] == sum(shards.lengths.tolist())
    assert (len(train["shards"]) > 1) == (shard_tokens == 300)
    pieces = sum(max(1, -(-len(ids_of(text)) // (max_length - 2))) for text in TEXTS)
    assert train["sequences"] + sum(manifest["dropped"].values()) == pieces
    assert train["documents"] == len(TEXTS)


def test_drops_are_counted_by_reason(tmp_path):
    manifest = prepare(tmp_path, TEXTS)
    assert manifest["dropped"] == {"short": 5, "unknown": 1, "duplicate": 1}


def test_validation_is_held_out_by_document(tmp_path):
    texts = [" ".join(sentence(1000 * i + j) for j in range(40)) for i in range(200)]
    manifest = prepare(tmp_path / "a", texts, validation_fraction=0.3, max_length=64)
    splits = manifest["splits"]
    assert 30 < splits["validation"]["documents"] < 90  # 200 x 0.3, over 4 standard deviations
    # Order does not move a document, and no sequence is in both splits.
    prepare(tmp_path / "b", texts[::-1], validation_fraction=0.3, max_length=64)
    sets = {}
    for folder in "ab":
        for split in ("train", "validation"):
            sequences = open_shards(tmp_path / folder, split)
            sets[folder, split] = {sequence.tobytes() for sequence in sequences}
    assert sets["a", "train"] == sets["b", "train"]
    assert sets["a", "validation"] == sets["b", "validation"]
    assert not sets["a", "train"] & sets["a", "validation"]


def test_limit_stops_at_the_first_sequence_that_reaches_it(tmp_path):
    texts = [sentence(i) for i in range(100)]
    manifest = prepare(tmp_path, texts, limit_tokens=500)
    lengths = open_shards(tmp_path).lengths.tolist()
    assert sum(lengths[:-1]) < 500 <= sum(lengths) == manifest["splits"]["train"]["tokens"]


def test_ten_megabyte_line_in_flat_memory(tmp_path):
    """The worst line there is: 10 MB without a single space; then 3 MB of words."""
    path = tmp_path / "dump.txt"
    words = " ".join(f"word{i % 5000} of the {i % 7919}" for i in range(150_000))
    path.write_text("x" * 10_000_000 + "\n" + words + "\n")
    tracemalloc.start()
    manifest = prepare_corpus(tmp_path / "out", [open_source(f"lines:{path}")], TOKENIZER,
                              validation_fraction=0.0)  # fmt: skip
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert manifest["splits"]["train"]["documents"] == 2
    assert manifest["splits"]["train"]["tokens"] > 600_000
    # The line three times over (bytes, text, pieces), its ids, one batch and the cache.
    assert peak < 8 * 10_000_000


# --- killed and continued -----------------------------------------------------------------------


def test_killed_run_continues_to_the_same_bytes(tmp_path):
    source = tmp_path / "dump.txt"
    # Every fifth line repeats one from before, often from before the kill.
    source.write_text("".join(sentence(i if i % 5 else i // 2, 30) + "\n" for i in range(24_000)))
    options = {"validation_fraction": 0.1, "shard_tokens": 10_000, "limit_tokens": 600_000}
    flags = [f for k, v in options.items() for f in (f"--{k.replace('_', '-')}", v)]
    killed = tmp_path / "killed"
    process = run_script("--source", f"lines:{source}", "--output", killed, *flags)
    try:
        while process.poll() is None and len(list(killed.glob("train-*.idx"))) < 3:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = json.loads((killed / "manifest.json").read_text())
    assert not left["complete"]
    assert left["commits"] >= 1
    with pytest.raises(UserError, match="unfinished"):
        open_shards(killed)
    before = (killed / "train-00000.bin").stat().st_mtime_ns

    prepare_corpus(killed, [open_source(f"lines:{source}")], TOKENIZER, **options)
    assert (killed / "train-00000.bin").stat().st_mtime_ns == before  # not written again
    whole = tmp_path / "whole"
    manifest = prepare_corpus(whole, [open_source(f"lines:{source}")], TOKENIZER, **options)
    assert manifest["dropped"]["duplicate"] > 1000
    ours, theirs = contents(killed), contents(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


SMALL = {"validation_fraction": 0.3, "shard_tokens": 300}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a corpus that was made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    assert prepare(folder, TEXTS * 2, **SMALL)["commits"] > 4
    return contents(folder)


@pytest.mark.parametrize("commits", range(6))
def test_continues_from_any_commit(tmp_path, monkeypatch, whole, commits):
    """Cut off before the manifest of commit `commits`, with shard files already in place."""
    written = 0

    def write_json(path, content):
        nonlocal written
        if written == commits:
            raise KeyboardInterrupt
        written += 1
        real(path, content)

    real = corpus.write_json
    monkeypatch.setattr(corpus, "write_json", write_json)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, TEXTS * 2, **SMALL)
    monkeypatch.undo()
    if commits:  # equal settings, written otherwise
        same = {"max_length": 512.0, "vocab_size": 30522.0}
        manifest_changed(tmp_path, lambda content: content["settings"].update(same))
        manifest_changed(tmp_path, lambda content: content["settings"].pop("limit_tokens"))
    prepare(tmp_path, TEXTS * 2, **SMALL)
    assert contents(tmp_path) == whole


def test_complete_corpus_is_left_alone(tmp_path):
    prepare(tmp_path, TEXTS)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare(tmp_path, TEXTS)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_folder_with_other_settings(tmp_path):
    prepare(tmp_path, TEXTS)
    with pytest.raises(UserError, match="max_length differs"):
        prepare(tmp_path, TEXTS, max_length=128)
    other = Source({"source": "other"}, lambda: iter(TEXTS))
    with pytest.raises(UserError, match="sources differs"):
        prepare_corpus(tmp_path, [other], TOKENIZER, validation_fraction=0.0)


@pytest.mark.parametrize(
    "name", ["counts.json", "train-00000.bin", "validation-00003.idx", "manifest.json"]
)
@pytest.mark.parametrize("key", [None, "0123456789abcdef"])
def test_a_file_of_somebody_elses_stays(tmp_path, name, key):
    """Whatever has a name of the format and is in no manifest."""
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UserError, match=name):
        prepare(tmp_path, TEXTS, key=key)
    assert contents(tmp_path) == {name: b'{"mine": 1}'}


def test_a_corpus_of_another_key_makes_room_and_nothing_else(tmp_path):
    prepare(tmp_path, TEXTS, key="a")
    (tmp_path / "train-00007.bin").write_text("mine")
    prepare(tmp_path, TEXTS * 2, key="b", max_length=64)
    assert read_manifest(tmp_path)["settings"]["max_length"] == 64
    assert (tmp_path / "train-00007.bin").read_text() == "mine"


def test_one_process_at_a_time_prepares_a_folder(tmp_path):
    def read():
        with pytest.raises(UserError, match="another process is writing"):
            prepare(tmp_path / "c", TEXTS)
        yield from TEXTS

    source = Source(texts_source(TEXTS).identity, read)
    prepare_corpus(tmp_path / "c", [source], TOKENIZER, validation_fraction=0.0)
    prepare(tmp_path / "alone", TEXTS)
    assert contents(tmp_path / "c") == contents(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "c"]


def test_a_run_that_wrote_no_shard_does_not_hold_the_folder(tmp_path):
    """Its source was bad: mended, it is another source."""
    with pytest.raises(UserError, match="no training sequence"):
        prepare(tmp_path, [""])
    prepare(tmp_path, TEXTS, max_length=64)
    assert read_manifest(tmp_path)["settings"]["max_length"] == 64


@pytest.mark.parametrize("texts", [[], ["", "too short"]])
def test_empty_corpus(tmp_path, texts):
    with pytest.raises(UserError, match="no training sequence"):
        prepare(tmp_path, texts)


def test_vocabulary_beyond_16_bits(tmp_path):
    tokenizer = get_tokenizer("bert-base-uncased")
    tokenizer.add_tokens([f"extra{i}" for i in range(65_536 - len(tokenizer))])
    with pytest.raises(UserError, match="65,536 tokens"):
        prepare_corpus(tmp_path, [texts_source(TEXTS)], tokenizer)


def test_files_are_closed_when_the_text_breaks_off(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 500)

    def read():
        yield from TEXTS
        raise UserError("broken off")

    source = Source({"source": "texts"}, read)
    with pytest.raises(UserError, match="broken off") as refused:
        prepare_corpus(tmp_path, [source], TOKENIZER, validation_fraction=0.0)
    # While the error is held, so are the variables of the functions that it came through.
    assert (tmp_path / "train-00000.bin.tmp").exists()
    assert not [f.path for f in psutil.Process().open_files() if f.path.endswith(".bin.tmp")]
    held = [entry.frame.f_locals.get("sequencer") for entry in refused.traceback]
    (sequencer,) = filter(None, held)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        sequencer.remember(b"sequence")


def test_settings_that_make_no_sense(tmp_path):
    for options in (
        {"validation_fraction": 1.0},
        {"max_length": 11},
        {"max_length": 1 << 16},
        {"shard_tokens": 0},
    ):
        with pytest.raises(UserError, match="need 0 <= fraction < 1"):
            prepare(tmp_path, TEXTS, **options)
