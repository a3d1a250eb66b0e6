"""Corpus preparation: against transformers' tokenizer, naive code, real kills and broken files."""

import hashlib
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from distilbert_kit.corpus import prepare as corpus
from distilbert_kit.corpus.prepare import encode_documents, prepare_corpus
from distilbert_kit.corpus.shards import open_shards
from distilbert_kit.corpus.text_sources import Source, open_source
from distilbert_kit.errors import UserError
from distilbert_kit.files import with_sha256
from distilbert_kit.models.checkpoints import get_tokenizer

SCRIPT = Path(__file__).parents[1] / "prepare_corpus.py"
WORDS = ["the", "history", "of", "language", "began", "when", "rivers", "met", "mountains", "and"]
TOKENIZER = get_tokenizer("bert-base-uncased")
TOKENIZER.name_or_path = "bert-base-uncased"
ENCODER = corpus.WordEncoder(TOKENIZER)


def sentence(number: int, words: int = 20) -> str:
    return " ".join(Random(number).choices(WORDS, k=words)) + f" {number}."


def texts_source(texts: list[str]) -> Source:
    return Source({"source": "texts"}, lambda: iter(texts))


def prepare(folder: Path, texts: list[str], **options) -> dict:
    options = {"validation_fraction": 0.0} | options
    return prepare_corpus(folder, [texts_source(texts)], TOKENIZER, **options)


def ids_of(text: str) -> list[int]:
    """The reference: transformers' own call, whole text at once."""
    return TOKENIZER(text, add_special_tokens=False, verbose=False)["input_ids"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- tokens -------------------------------------------------------------------------------------

# All of Unicode but lone surrogates, with what BERT treats specially made likely.
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(
            "aA bB\t\n\r\x0b\x1c\x85\u00a0\u3000.,!-'\u0301\u0130\u03a3語中\u200d\ufffd\0"
        ),
    ),
    max_size=200,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_tokens_equal_those_of_transformers(texts):
    found = [np.frombuffer(ids, "<u2").tolist() for ids in ENCODER.encode(texts)]
    assert found == [ids_of(text) for text in texts]


def test_long_texts_are_cut_without_changing_a_token(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 2000)
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 3000)
    monkeypatch.setattr(corpus, "CACHE_CHARACTERS", 500)
    texts = [" ".join(sentence(i) for i in range(n)) for n in (1, 90, 3, 200)]
    texts.insert(1, "")
    texts.append("Ünïcödé,words;" * 900 + "語" * 5000)
    found = [ids.tolist() for _, ids in encode_documents(texts, TOKENIZER)]
    assert found == [ids_of(text) for text in texts]


def test_special_tokens_in_a_text_are_text():
    ((_, ids),) = encode_documents(
        ["a [MASK] and [SEP][CLS] [PAD][UNK] in documentation"], TOKENIZER
    )
    assert not set(ids.tolist()) & set(TOKENIZER.all_special_ids)
    # Without the guard there would be something to find.
    assert set(ids_of("a [MASK]")) & set(TOKENIZER.all_special_ids)
    tokenizer = get_tokenizer("bert-base-uncased")
    tokenizer.add_special_tokens({"additional_special_tokens": ["language"]})
    ((_, ids),) = encode_documents(["a language"], tokenizer)
    assert ids.tolist() == ids_of("a language")


def test_truncation_and_padding_of_the_checkpoint_are_ignored():
    tokenizer = get_tokenizer("bert-base-uncased")
    tokenizer.backend_tokenizer.enable_truncation(128)
    tokenizer.backend_tokenizer.enable_padding(length=128)
    text = sentence(0, 300)
    found = [ids.tolist() for _, ids in encode_documents([text, "a b"], tokenizer)]
    assert found == [ids_of(text), ids_of("a b")]


def test_not_a_bert_tokenizer():
    rust = TOKENIZER.backend_tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    rust.pre_tokenizer = ByteLevel()
    with pytest.raises(UserError, match="BERT family"):
        next(encode_documents(["a"], PreTrainedTokenizerFast(tokenizer_object=rust)))


# --- sequences ----------------------------------------------------------------------------------


def naive_sequences(texts: list[str], max_length: int) -> list[list[int]]:
    """What should be kept, written the plain way."""
    kept: list[list[int]] = []
    for text in texts:
        ids = ids_of(text)
        while ids:
            chunk, ids = ids[: max_length - 2], ids[max_length - 2 :]
            sequence = [TOKENIZER.cls_token_id, *chunk, TOKENIZER.sep_token_id]
            unknown = sequence.count(TOKENIZER.unk_token_id)
            if len(sequence) > 11 and unknown / len(sequence) < 0.5 and sequence not in kept:
                kept.append(sequence)
    return kept


TEXTS = [
    *(sentence(i) for i in range(30)),
    sentence(3),
    "too short",
    "",
    "the river met the sea and war",  # 7 + 2 tokens
    "a b c d e f g h i",  # 9 + 2 = 11 tokens: dropped
    "a b c d e f g h i j",  # 12: kept
    "☃ " * 9 + "a b c d e f g",  # 9 of 18 tokens unknown: dropped
    "☃ " * 8 + "a b c d e f g h",  # 8 of 18: kept
    " ".join(sentence(i) for i in range(100, 130)),
    "a " * 510,  # one full sequence
    "b " * 511,  # a full one and one word left over
]


@pytest.mark.parametrize("max_length", [512, 64])
@pytest.mark.parametrize("shard_tokens", [1 << 24, 300])
def test_sequences_equal_the_naive_ones(tmp_path, max_length, shard_tokens):
    manifest = prepare(tmp_path, TEXTS, max_length=max_length, shard_tokens=shard_tokens)
    shards = open_shards(tmp_path, "train", TOKENIZER, checksums=True)
    expected = naive_sequences(TEXTS, max_length)
    assert [sequence.tolist() for sequence in shards] == expected
    assert shards.lengths.tolist() == [len(sequence) for sequence in expected]
    assert shards.total_tokens == sum(shards.lengths.tolist())
    assert max(shards.lengths) == max_length
    counts = np.bincount(np.concatenate(expected), minlength=len(TOKENIZER))
    assert np.array_equal(shards.token_counts, counts)
    train = manifest["splits"]["train"]
    assert (len(train["shards"]) > 1) == (shard_tokens == 300)
    pieces = sum(max(1, -(-len(ids_of(text)) // (max_length - 2))) for text in TEXTS)
    assert train["sequences"] + sum(manifest["dropped"].values()) == pieces
    assert train["documents"] == len(TEXTS)


def test_drops_are_counted_by_reason(tmp_path):
    manifest = prepare(tmp_path, TEXTS)
    assert manifest["dropped"] == {"short": 5, "unknown": 1, "duplicate": 1}


def test_reading(tmp_path):
    prepare(tmp_path, TEXTS, shard_tokens=300)
    shards = open_shards(tmp_path)
    assert shards[0].dtype == np.uint16
    assert np.array_equal(shards[-1], shards[len(shards) - 1])
    with pytest.raises(ValueError, match="read-only"):
        shards[0][0] = 1
    with pytest.raises(IndexError):
        shards[len(shards)]
    # What a data-loader process receives: the path, not the tokens.
    data = pickle.dumps(shards)
    assert len(data) < 500
    assert np.array_equal(pickle.loads(data)[5], shards[5])


def test_files_are_plain_little_endian(tmp_path):
    prepare(tmp_path, TEXTS)
    tokens = np.fromfile(tmp_path / "train-00000.bin", dtype="<u2")
    expected = naive_sequences(TEXTS, 512)
    assert tokens.tolist() == [token for sequence in expected for token in sequence]
    assert (tmp_path / "train-00000.bin").stat().st_size == 2 * sum(map(len, expected))


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


def run_script(*arguments: object, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)  # fmt: skip


def test_killed_run_continues_to_the_same_bytes(tmp_path):
    source = tmp_path / "dump.txt"
    # Every fifth line repeats one from before, often from before the kill.
    source.write_text("".join(sentence(i if i % 5 else i // 2, 30) + "\n" for i in range(64_000)))
    options = {"validation_fraction": 0.1, "shard_tokens": 10_000, "limit_tokens": 1_600_000}
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


@pytest.mark.parametrize("commits", range(6))
def test_continues_from_any_commit(tmp_path, monkeypatch, commits):
    """Cut off before the manifest of commit `commits`, with shard files already in place."""
    options = {"validation_fraction": 0.3, "shard_tokens": 300}
    whole = prepare(tmp_path / "whole", TEXTS * 2, **options)
    assert whole["commits"] > 4
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
        prepare(tmp_path / "cut", TEXTS * 2, **options)
    monkeypatch.undo()
    prepare(tmp_path / "cut", TEXTS * 2, **options)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_complete_corpus_is_left_alone(tmp_path):
    prepare(tmp_path, TEXTS)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare(tmp_path, TEXTS)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


# --- errors -------------------------------------------------------------------------------------


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
    assert open_shards(tmp_path).manifest["settings"]["max_length"] == 64
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
    assert open_shards(tmp_path).manifest["settings"]["max_length"] == 64


@pytest.mark.parametrize("texts", [[], ["", "too short"]])
def test_empty_corpus(tmp_path, texts):
    with pytest.raises(UserError, match="no training sequence"):
        prepare(tmp_path, texts)


def test_vocabulary_beyond_16_bits(tmp_path):
    tokenizer = get_tokenizer("bert-base-uncased")
    tokenizer.add_tokens([f"extra{i}" for i in range(65_536 - len(tokenizer))])
    with pytest.raises(UserError, match="65,536 tokens"):
        prepare_corpus(tmp_path, [texts_source(TEXTS)], tokenizer)


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
    data[100] ^= 1
    path.write_bytes(data)
    open_shards(tmp_path)
    with pytest.raises(UserError, match="SHA-256"):
        open_shards(tmp_path, checksums=True)


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


def manifest_changed(folder: Path, change) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(with_sha256(content)))


def test_another_format_and_splits_without_text_are_told_as_they_are(tmp_path):
    prepare(tmp_path, TEXTS)
    with pytest.raises(UserError, match="no split 'test'; choose from train, validation"):
        open_shards(tmp_path, "test")
    manifest_changed(tmp_path, lambda content: content["splits"]["train"].update(sequences=0))
    with pytest.raises(UserError, match="no train sequences; prepare it from more text"):
        open_shards(tmp_path)
    manifest_changed(tmp_path, lambda content: content.update(format=2))
    with pytest.raises(UserError, match="a corpus of format 2, not 1; delete it"):
        open_shards(tmp_path)


def test_an_empty_shard_is_none_of_this_kit(tmp_path):
    prepare(tmp_path, TEXTS)
    (tmp_path / "train-00000.bin").write_bytes(b"")
    (tmp_path / "train-00000.idx").write_bytes(b"\0" * 4)
    none = {"sequences": 0, "tokens": 0}
    manifest_changed(tmp_path, lambda content: content["splits"]["train"]["shards"][0].update(none))
    with pytest.raises(UserError, match=r"shards\.0\.sequences: Input should be greater than 0"):
        open_shards(tmp_path)


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
