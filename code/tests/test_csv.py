"""CSV files of all kinds and faults, and their splits."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from distilbert_kit.data.csv import load_labelled_texts, sorted_labels, split_texts
from distilbert_kit.errors import UserError


def write(tmp_path, content, encoding="utf-8"):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ('Text,Label\n"a, b",x\n"say ""hi""\nthere",y\n', "utf-8"),
        ('Text,Label\r\n"a, b",x\r\n"say ""hi""\nthere",y\r\n', "utf-8-sig"),
        ('LABEL;text\nx;a, b\ny;"say ""hi""\nthere"\n', "utf-8"),
        ('id\tTEXT\tlabel\n7\ta, b\tx\n8\t"say ""hi""\nthere"\ty\n', "utf-8"),
        ('review,n,sentiment\n"a, b",3,x\n"say ""hi""\nthere",,y', "utf-8"),
        ('\n \nlabel;text\nx;a, b\ny;"say ""hi""\nthere"\n', "utf-8"),
        ('sep=\t\r\ntext\tlabel, yes\r\na, b\tx\r\n"say ""hi""\nthere"\ty\r\n', "utf-8-sig"),
    ],
)
def test_dialects(tmp_path, content, encoding):
    table = load_labelled_texts(write(tmp_path, content, encoding))
    assert table["text"].tolist() == ["a, b", 'say "hi"\nthere']
    assert table["label"].tolist() == ["x", "y"]


def test_words_that_pandas_takes_for_missing_are_words(tmp_path):
    table = load_labelled_texts(write(tmp_path, "text,label\nNone,NA\nnull,n/a\n"))
    assert table.to_numpy().tolist() == [["None", "NA"], ["null", "n/a"]]


def test_long_texts_and_quotes_within_words_are_read(tmp_path):
    table = load_labelled_texts(write(tmp_path, f'text,label\n{"a " * 100_000},x\n5" or 6",y\n'))
    assert table["text"].str.len().tolist() == [199_999, 8]


def test_other_encoding_by_option(tmp_path):
    path = write(tmp_path, "text,label\ncafé,1\nthé,0\n", "cp1252")
    with pytest.raises(UserError, match=r"not utf-8-sig .*--encoding"):
        load_labelled_texts(path)
    assert load_labelled_texts(path, encoding="cp1252")["text"].tolist() == ["café", "thé"]
    with pytest.raises(UserError, match="not klingon"):
        load_labelled_texts(path, encoding="klingon")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        (" \n \n", "empty"),
        ("text,label\n", "no row with a text and a label"),
        ("a,b,c\n1,2,3\n", r"--text-column cannot be guessed; name one of its 3 columns: 'a', 'b'"),
        ("text,body,label\nx,y,1\n", "may be 'text' or 'body'"),
        ("text,x,y\na,1,2\n", "--label-column cannot be guessed"),
        ("text,label\na,1\n,0\n", "data row 2 has no 'text'"),
        ("text,label\na,1\nb,NaN\nc,\n", r"data row 2 has no 'label' \(2 such rows\)"),
        ("text,label\na,1\nb\n", "data row 2 has no 'label'"),
        ("\ntext,label,label\na,1,0\n", "2 columns are called 'label'"),
        ('\ntext,label\n"a "good" film",1\n', "a lone double quote in line 3"),
        ("text,label\nhello, world,1\n", "the first row has more fields than the header"),
        ("text\na\n", "--label-column cannot be guessed; add a column"),
        ("text,label\na,1\nhello, world,1\n", "not a regular CSV"),
        ('text,label\na,1\n"b,0\n', "not a regular CSV"),
        ('text,label\n"Great movie,pos\n"Bad movie,neg\n', "a lone double quote in line 3"),
        ('text,label\n"a "good" film",1\nb,0\n', "a lone double quote in line 2"),
        (",".join(f"c{i}" for i in range(1_000_000)) + "\n", "1,000,000 columns, at most 10,000"),
    ],
)
def test_faults_are_one_clear_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        load_labelled_texts(write(tmp_path, content))
    assert "\n" not in str(caught.value).strip()


def test_binary_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="not utf-8-sig"):
        load_labelled_texts(write(tmp_path, bytes(range(128, 256)) * 50))
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="no CSV; export it as one"):
        load_labelled_texts(tmp_path / "sheet.xlsx")
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            load_labelled_texts(path)


def test_missing_rows_are_dropped_on_request(tmp_path):
    path = write(tmp_path, "text,label\na,1\n,0\nb,\nc,0\n")
    table = load_labelled_texts(path, drop_missing=True)
    assert table.to_dict() == {"text": {1: "a", 4: "c"}, "label": {1: "1", 4: "0"}}
    assert table.attrs["rows_left_out"] == 2


def test_columns_by_name_in_any_case(tmp_path):
    path = write(tmp_path, "Title,Text,Label\nt,a,1\n")
    assert load_labelled_texts(path, "title", "LABEL")["text"].tolist() == ["t"]
    with pytest.raises(UserError, match="no column 'headline'"):
        load_labelled_texts(path, "headline")
    with pytest.raises(UserError, match="no column 'Text'"):
        load_labelled_texts(path, "Text", "Text")


def test_label_order():
    assert sorted_labels(pd.Series(["10", "9", "-1"])) == ("-1", "9", "10")
    assert sorted_labels(pd.Series(["b", "10", "a"])) == ("10", "a", "b")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), min_size=1), st.integers(0, 9))
def test_no_text_on_two_sides_and_every_class_everywhere(rows, seed):
    texts = [f" text  {number} "[: None if number % 2 else -1] for number, _ in rows]
    table = pd.DataFrame({"text": texts, "label": [str(label) for _, label in rows]})
    first = {}
    for number, label in rows:
        first.setdefault(number, label)
    counts = np.bincount(list(first.values()), minlength=4)
    present = {label for _, label in rows}
    if len(set(first.values())) < 2 or min(counts[label] for label in present) < 3:
        with pytest.raises(UserError, match=r"only one label|too rare"):
            split_texts(table, seed)
        return
    splits = split_texts(table, seed)
    assert sorted(i for part in splits.values() for i in part.index) == list(range(len(table)))
    sides = [set(part["text"].str.split().str.join(" ")) for part in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len(first)
    for part in splits.values():
        assert {str(label) for label in set(first.values())} <= set(part["label"])
    again = split_texts(table, seed)
    assert all(again[name].equals(splits[name]) for name in splits)


def test_shares_are_those_of_each_class_and_follow_the_seed():
    labels = ["a"] * 200 + ["b"] * 50
    table = pd.DataFrame({"text": [f"t{i}" for i in range(250)], "label": labels})
    splits = split_texts(table, 0)
    for name, expected in {"train": [160, 40], "validation": [20, 5], "test": [20, 5]}.items():
        assert [(splits[name]["label"] == label).sum() for label in "ab"] == expected
    assert not splits["test"].equals(split_texts(table, 1)["test"])
