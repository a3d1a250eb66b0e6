"""A CSV with texts and labels: read with plain errors, split without a text on two sides."""

import csv
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from ..foreign import MOST_BYTES, kind_of, read_bytes

SEPARATORS = ",;\t|"
MOST_COLUMNS = 10_000
MOST_CLASSES = 10_000
TEXT_NAMES = ("text", "sentence", "review", "content", "body", "message", "comment", "document")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "topic")
NO_TEXT = (".json", ".jsonl", ".ndjson", ".parquet", ".xls", ".xlsx")  # whose lines are no texts
HELD_OUT = {"validation": 0.1, "test": 0.1}  # shares of the distinct texts of every class


def read_csv(path: Path, encoding: str = "utf-8-sig") -> pd.DataFrame:
    """All columns as strings, NaN where empty; the separator is the header's most frequent one.

    Blank lines may stand above the header, and Excel's `sep=;`, which names another separator.
    Raises UserError for a file that is missing, empty, of another encoding, of rows longer than
    the header or of more than 10,000 columns.
    """
    if kind_of(path) in NO_TEXT:
        raise UserError(f"{path}: no CSV; export it as one")
    try:
        content = read_bytes(path).decode(encoding).rstrip("\r\n ")
        separator, rows = _without_top(content)
        header = next(csv.reader(io.StringIO(rows, newline=""), delimiter=separator), [])
        if len(header) > MOST_COLUMNS:
            raise UserError(
                f"{path}: {len(header):,} columns, at most {MOST_COLUMNS:,} are read; "
                "keep the text and the label column"
            )
        name, times = next(iter(Counter(header).most_common(1)), ("", 0))
        if times > 1:
            raise UserError(f"{path}: {times} columns are called {name!r}; rename them")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # fields beyond the header
            table = pd.read_csv(
                io.StringIO(content, newline=""),
                sep=separator,
                skiprows=content.removesuffix(rows).count("\n"),
                dtype=str,
                keep_default_na=False,  # "None" and "NA" may be words
                na_values=["", "NaN", "nan"],
                index_col=False,
                skip_blank_lines=len(header) != 1,  # in one column it is an empty cell
            )
        _check_quotes(content, path, separator)
        _check_swallowed(table, path, separator)
        return table
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"{path}: no such file; give a CSV whose first line names the columns"
        ) from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: empty; give a CSV whose first line names the columns") from None
    except (UnicodeError, LookupError) as error:
        raise UserError(
            f"{path}: not {encoding} ({error}); save it as UTF-8, or name its --encoding, "
            "for example cp1252 or utf-16"
        ) from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as error:
        # The warning, of the first row alone, names no line.
        first_row = isinstance(error, pd.errors.ParserWarning)
        said = "the first row has more fields than the header" if first_row else str(error).strip()
        raise UserError(
            f"{path}: not a regular CSV ({said}); put texts that hold "
            f"{separator!r} or line breaks in double quotes"
        ) from None


def _without_top(content: str) -> tuple[str, str]:
    """The separator, and the content from the header on."""
    rows = content.lstrip("\r\n ")
    if told := re.match(rf'"?sep=([{SEPARATORS}])"?[\r ]*\n', rows, re.IGNORECASE):
        return told[1], rows[told.end() :].lstrip("\r\n ")
    return max(SEPARATORS, key=rows.partition("\n")[0].count), rows


def _check_quotes(content: str, path: Path, separator: str) -> None:
    """Refuse a quote that ends before its field does, which pandas reads over."""
    csv.field_size_limit(MOST_BYTES)
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        for _ in rows:
            pass
    except csv.Error as error:
        raise UserError(
            f"{path}: a lone double quote in line {rows.line_num} or before it ({error}); "
            'write "" for a quote inside of a text in double quotes'
        ) from None


def _check_swallowed(table: pd.DataFrame, path: Path, separator: str) -> None:
    """Refuse a field that swallowed whole rows: a quote begins it and the next lone one ends it.

    Its lines but the first and last have as many separators as a row, and one of their columns
    holds what that column holds elsewhere, as labels do, or numbers only. A letter's lines may have
    as many separators, too.
    """
    many = len(table.columns) - 1
    known = [set(table[column].dropna().str.strip()) for column in table.columns]
    for column in table.columns:
        for row, field in enumerate(table[column].fillna(""), 1):
            inner = [line.split(separator) for line in field.split("\n")[1:-1]]
            if not many or len(inner) < 2 or any(len(cells) != many + 1 for cells in inner):
                continue
            columns = [[cell.strip() for cell in cells] for cells in zip(*inner, strict=True)]
            if any(
                set(cells) <= values or not np.isnan(_numbers(cells)).any()
                for cells, values in zip(columns, known, strict=True)
            ):
                raise UserError(
                    f"{path}: data row {row} holds {len(inner)} lines that look like rows: a "
                    'lone double quote begins it; write "" for a quote inside of a text'
                )


def find_column(
    columns: Sequence[str], given: str | None, usual: Sequence[str], option: str, where: str
) -> str:
    """The column called `given`, or else the only one with a usual name, in any letter case.

    Raises UserError that lists the columns.
    """
    wanted = [given.lower()] if given is not None else usual
    exact = [c for c in columns if c == given]
    found = exact or [c for c in columns if c.strip().lower() in wanted]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(repr, columns[:10])) + (", …" if len(columns) > 10 else "")
    what = f"no column {given!r}" if given else f"{option} cannot be guessed"
    if len(found) > 1:
        what = f"{option} may be {' or '.join(map(repr, found[:3]))}"
    choice = f"name one of its {len(columns)} columns: {shown}" if columns else "add a column"
    raise UserError(f"{where}: {what}; {choice}")


def load_labelled_texts(
    path: Path,
    text_column: str | None = None,
    label_column: str | None = None,
    drop_missing: bool = False,
    encoding: str = "utf-8-sig",
) -> pd.DataFrame:
    """Columns text and label (strings) of a CSV, in file order, indexed by data row from 1.

    Its `attrs` tell what both are called in the file, and how many rows were left out. Raises
    UserError as `read_csv` and `find_column`, for the first row without a text or label unless
    `drop_missing`, and when nothing is left.
    """
    table, where = read_csv(path, encoding), str(path)
    columns = list(table.columns)
    text = find_column(columns, text_column, TEXT_NAMES, "--text-column", where)
    others = [column for column in columns if column != text]
    if label_column is None and len(others) == 1:
        label_column = others[0]
    label = find_column(others, label_column, LABEL_NAMES, "--label-column", where)
    names = {"text": text, "label": label}
    table = pd.DataFrame(
        {name: table[column].str.strip().replace("", np.nan) for name, column in names.items()}
    )
    table.index = pd.RangeIndex(1, len(table) + 1, name="row")
    missing = table.isna().to_numpy()
    rows = np.flatnonzero(missing.any(axis=1))
    if len(rows) and not drop_missing:
        column = (text, label)[missing[rows[0]].argmax()]
        raise UserError(
            f"{path}: data row {rows[0] + 1} has no {column!r} ({len(rows):,} such rows); "
            "mend them or add --drop-missing"
        )
    table = table.dropna()
    if table.empty:
        raise UserError(f"{path}: no row with a text and a label; give some")
    _check_labels(table["label"], path)
    table.attrs = {"text_column": text, "label_column": label, "rows_left_out": len(rows)}
    return table


def _check_labels(labels: Iterable[str], path: Path) -> None:
    """Refuse one class written in two ways, 1 and 1.0 or Spam and spam, and too many classes."""
    names: dict[str, str] = {}
    distinct = list(dict.fromkeys(labels))
    if len(distinct) > MOST_CLASSES:
        raise UserError(
            f"{path}: {len(distinct):,} different labels, at most {MOST_CLASSES:,} are read; "
            "name another --label-column"
        )
    for label, number in zip(distinct, _numbers(distinct).tolist(), strict=True):
        meaning = str(Decimal(label).normalize()) if math.isfinite(number) else label.casefold()
        if (other := names.setdefault(meaning, label)) != label:
            raise UserError(
                f"{path}: the labels {other!r} and {label!r} seem to be one class; write them "
                "alike, or rename one"
            )


def _numbers(labels: list[str]) -> np.ndarray:
    """The values of labels, NaN for those that are no numbers."""
    return np.asarray(pd.to_numeric(pd.Series(labels), errors="coerce"), dtype=float)


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in order: by value if all are numbers, or else by name."""
    names = sorted(set(labels))
    return tuple(names if np.isnan(_numbers(names)).any() else sorted(names, key=float))


def split_texts(table: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """Train, validation and test, 80, 10 and 10 % of every class, drawn from `seed`.

    Rows whose texts are equal but for white space go to one side, whatever their labels: by the
    label that comes first. Every class has at least one text in every split; UserError when a class
    has fewer than three different texts, or there is only one class.
    """
    key = table["text"].str.split().str.join(" ")
    distinct = table.loc[~key.duplicated(), "label"]
    counts = distinct.value_counts()
    if len(counts) < 2:
        raise UserError(f"only one label, {counts.index[0]!r}; give texts of at least two classes")
    # A class may be left with no text of its own: all are counted under another label.
    counts = counts.reindex(sorted_labels(table["label"]), fill_value=0)
    if counts.min() < 3:
        raise UserError(
            f"label {counts.idxmin()!r} has {counts.min()} different texts, three splits need 3 "
            f"({(counts < 3).sum()} labels are too rare); add texts, or drop or merge the label"
        )
    random, side = np.random.default_rng(seed), pd.Series("train", index=distinct.index)
    rows_of = distinct.groupby(distinct).groups  # by label, in file order
    for label in counts.index:
        rows = random.permutation(rows_of[label])
        for split, share in HELD_OUT.items():
            held, rows = np.split(rows, [max(1, round(share * counts[label]))])
            side[held] = split
    side = key.map(dict(zip(key[distinct.index], side, strict=True)))
    return {split: table.loc[side == split] for split in ("train", *HELD_OUT)}
