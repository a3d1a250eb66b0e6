"""What people's files hold: line marks, tables, compression, half characters, one class twice."""

import gzip
import json

import pytest

from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.csv import load_labelled_texts, read_csv
from distilbert_kit.errors import UserError
from distilbert_kit.serve.reading import (
    read_questions_and_contexts,
    read_source,
    read_texts,
)

UTF8 = "utf-8-sig"
# What str.splitlines takes for line ends beside \n and \r\n.
MARKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("mark", MARKS)
def test_only_newlines_end_a_line(tmp_path, mark):
    texts = [f"a fine{mark}film", "a dull one"]
    for end in ("\n", "\r\n"):
        path = tmp_path / "texts.txt"
        path.write_bytes(end.join([*texts, ""]).encode())
        assert read_texts(path, None, UTF8) == texts
        assert list(open_source(f"lines:{path}").read()) == texts
    rows = [{"question": f"When{mark}?", "context": f"In{mark}1823."} for _ in range(2)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    asked = read_questions_and_contexts(path, None, UTF8)
    assert (asked.questions, asked.contexts) == ([f"When{mark}?"] * 2, [f"In{mark}1823."] * 2)


def test_a_table_is_never_read_as_lines(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text('Text,Label\n"a fine film,\nreally",pos\na dull one,neg\n')
    assert read_texts(path, None, UTF8) == ["a fine film, really", "a dull one"]
    path.write_text("words,mark\na fine film,1\n")
    with pytest.raises(UserError, match="--columns cannot be guessed; name one of its 2 columns"):
        read_texts(path, None, UTF8)


def test_empty_texts_are_refused_or_left_out(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,more\na fine film,really\n,dull\na dull one, \n")
    with pytest.raises(UserError, match="text 2 is empty; write it, or add --drop-missing"):
        read_texts(path, ["text"], UTF8)
    assert read_texts(path, ["text"], UTF8, drop_missing=True) == ["a fine film", "a dull one"]
    pairs = read_texts(path, ["text", "more"], UTF8, drop_missing=True)
    assert pairs == [("a fine film", "really")]
    path.write_text("text\n \n")
    with pytest.raises(UserError, match="no texts; give at least one"):
        read_texts(path, ["text"], UTF8, drop_missing=True)


def test_gzip_is_told_by_content_and_read(tmp_path):
    path = tmp_path / "dump.txt"  # no suffix says it
    whole = gzip.compress(b"a fine film\na dull one\n")
    path.write_bytes(whole)
    assert list(open_source(f"lines:{path}", encoding_errors="replace").read()) == [
        "a fine film",
        "a dull one",
    ]
    assert read_texts(path, None, UTF8) == ["a fine film", "a dull one"]
    path.write_bytes(gzip.compress(b"text,label\na,b\n"))
    assert read_csv(path).to_dict("records") == [{"text": "a", "label": "b"}]
    for damaged in (whole[:-9], whole[:12] + b"\xff\xff\xff" + whole[15:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a whole gzip file"):
            list(open_source(f"lines:{path}", encoding_errors="replace").read())


def test_official_squad_files_are_read(tmp_path):
    asked = [{"id": "1", "question": "When?", "answers": []}, {"question": "Where?"}]
    articles = [{"title": "Mill", "paragraphs": [{"context": "In 1823.", "qas": asked}]}]
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    found = read_questions_and_contexts(path, None, UTF8)
    assert found == (["When?", "Where?"], ["In 1823."] * 2, ["1", ""], str(path))
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": asked}]}]}))
    with pytest.raises(UserError, match=r"data > 0 > paragraphs > 0 > context: Field required"):
        read_questions_and_contexts(path, None, UTF8)


def test_half_a_character_is_named(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"question": "When?", "context": "In \\ud800 1823."}')
    with pytest.raises(UserError, match=r"text 1 holds '\\ud800', half of a character"):
        read_questions_and_contexts(path, None, UTF8)
    path.write_bytes(b"a \xed\xa0\x80 film")  # the same in bytes
    with pytest.raises(UserError, match="not utf-8-sig"):
        read_source(path, UTF8, "")


@pytest.mark.parametrize("other", ["1.0", "01", "1e0"])
def test_one_class_written_twice_is_told(tmp_path, other):
    path = tmp_path / "news.csv"
    path.write_text(f"text,label\na,1\nb,0\nc,{other}\n")
    with pytest.raises(UserError, match=f"the labels '1' and '{other}' seem to be one class"):
        load_labelled_texts(path)
    path.write_text("text,label\na,Spam\nb,ham\nc,spam\n")
    with pytest.raises(UserError, match="the labels 'Spam' and 'spam'"):
        load_labelled_texts(path)


def test_a_lone_quote_that_swallows_rows_is_told(tmp_path):
    path = tmp_path / "news.csv"
    rows = ["text,label", '"a lone quote,1', "b,0", "c,1", 'another",0', "e,1"]
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match="data row 1 holds 2 lines that look like rows"):
        read_csv(path)
    for text in (
        "one\ntwo\nthree, four\nfive",
        "Dear team,\nit came, but late.\nCall, please.\nAnn",
    ):
        path.write_text(f'text,label\n"{text}",1\nb,0\n')
        assert read_csv(path)["text"][0] == text


def test_no_row_or_column_is_left_out_unsaid(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text\ngood\n\nbad\n\n\n")
    assert read_csv(path)["text"].isna().tolist() == [False, True, False]
    path.write_text("text,label,label\na,1,0\n")
    with pytest.raises(UserError, match="2 columns are called 'label'"):
        read_csv(path)
    path.write_text("text,label\na,1234567890123456789\nb,1234567890123456790\n")
    assert load_labelled_texts(path)["label"].nunique() == 2  # as floats they are equal
