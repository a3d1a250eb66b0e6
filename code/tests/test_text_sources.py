"""Where a corpus' text comes from: lines, parquet, docstrings, the hub; what is no source."""

from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import TEXTS, TOKENIZER, naive_sequences, run_script, texts_source
from test_weights import full_disk

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.shards import open_shards
from distilbert_kit.corpus.text_sources import open_source, read_docs
from distilbert_kit.errors import UserError


def test_lines(tmp_path):
    path = tmp_path / "dump.txt"
    path.write_bytes("première\r\nsecond\n\nlast".encode())
    assert list(open_source(f"lines:{path}").read()) == ["première", "second", "", "last"]


def test_broken_utf8_names_the_line(tmp_path):
    path = tmp_path / "dump.txt"
    path.write_bytes(b"good\nalso good\nbad \xff here\n")
    with pytest.raises(UserError, match="line 3 is not UTF-8 at byte 5"):
        list(open_source(f"lines:{path}").read())
    replaced = open_source(f"lines:{path}", encoding_errors="replace")
    assert list(replaced.read())[2] == "bad \ufffd here"


def test_parquet(tmp_path):
    for name, texts in {"b": ["three", None], "a": ["one", "two"]}.items():
        table = pa.table({"text": pa.array(texts, pa.string()), "id": list(range(len(texts)))})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    source = open_source(f"parquet:{tmp_path}/*.parquet")
    assert list(source.read()) == ["one", "two", "three", ""]
    with pytest.raises(UserError, match="no column 'body'; pass --text-column, one of text, id"):
        open_source(f"parquet:{tmp_path}/*.parquet", "body")
    with pytest.raises(UserError, match="holds int64, not text"):
        open_source(f"parquet:{tmp_path}/a.parquet", "id")
    (tmp_path / "b.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match="not a parquet file"):
        open_source(f"parquet:{tmp_path}/*.parquet")


def test_changed_source_is_another_corpus(tmp_path):
    path = tmp_path / "dump.txt"
    path.write_text("\n".join(TEXTS))
    out = tmp_path / "out"
    prepare_corpus(out, [open_source(f"lines:{path}")], TOKENIZER)
    path.write_text("\n".join(TEXTS[1:]))
    with pytest.raises(UserError, match="sources differs"):
        prepare_corpus(out, [open_source(f"lines:{path}")], TOKENIZER)


def test_several_sources_are_read_in_turn(tmp_path):
    halves = [texts_source(TEXTS[:10]), texts_source(TEXTS[10:])]
    prepare_corpus(tmp_path, halves, TOKENIZER, validation_fraction=0.0)
    found = [sequence.tolist() for sequence in open_shards(tmp_path)]
    assert found == naive_sequences(TEXTS, 512)


@pytest.mark.parametrize("spec", ["lines:nowhere.txt", "parquet:nowhere/*.parquet"])
def test_missing_file(spec):
    with pytest.raises(UserError, match="no such file"):
        open_source(spec)


@pytest.mark.parametrize("spec", ["", "lines", "docs:x", "csv:a.csv", "hub:"])
def test_unknown_source(spec):
    with pytest.raises(UserError, match="use docs, data:DATASET"):
        open_source(spec)


def test_hub_without_a_network(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(UserError, match=r"hub:someone/something: not opened .* --source docs"):
        open_source("hub:someone/something")


class BrokenStream:
    """Rows of the hub, whose network goes after the first."""

    def __iter__(self):
        yield {"text": "one"}
        raise ConnectionError("reset by peer")


def test_a_stream_of_the_hub_that_breaks_off_is_one_line(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: BrokenStream())
    texts = iter(open_source("hub:someone/something@0123").read())
    assert next(texts) == "one"
    with pytest.raises(UserError, match=r"^hub:someone/something: broken off after row 1 .*again$"):
        next(texts)


def test_a_full_disk_is_not_taken_for_a_wrong_name(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        open_source("hub:someone/something@0123")


def test_docstrings_are_read_and_never_run(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '''"""Tools that turn a table of measurements into a short summary for people."""
raise SystemExit("imported")

class Table:
    """A short one.

    Rows are kept in ``order`` and :ref:`columns <where>` may be added at **any** later time.

    Parameters
    ----------
    rows : list of dict, optional
        The rows that the table has at the start, in the order in which they are shown.
    size : int

    >>> Table(rows=[1, 2, 3, 4, 5, 6, 7, 8]).show(4, 5, 6, 7, 8, 9, 10, 11, 12)
    """
    def show(self):
        "x = 1"
'''
    )
    assert list(read_docs(path)) == [
        "Tools that turn a table of measurements into a short summary for people.",
        "Rows are kept in order and columns may be added at any later time. "
        "The rows that the table has at the start, in the order in which they are shown.",
    ]
    path.write_text("def broken(:")
    assert list(read_docs(path)) == []


def test_docs_source_is_deterministic_and_takes_from_all_libraries():
    first, second = (list(islice(open_source("docs").read(), 60)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 40
    identity = open_source("docs").identity
    assert set(identity["versions"]) >= {"torch", "numpy", "transformers"}


def test_script_reports_errors_in_one_line(tmp_path):
    process = run_script("--source", "lines:nowhere.txt", "--output", tmp_path / "out")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == ""
    assert errors == "error: nowhere.txt: no such file; mend --source\n"


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"text": [folder]}), tmp_path / folder / "part.parquet")
    found = open_source(f"parquet:{tmp_path}/*/part.parquet").identity["files"]
    assert [name for name, _ in found] == ["part.parquet"] * 2 and found[0] != found[1]
