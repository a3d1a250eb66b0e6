"""Texts and questions as people have them: lines, tables, JSON; read for predictions."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.csv import NO_TEXT, TEXT_NAMES, find_column, read_csv
from ..data.questions import COLUMNS, squad_rows
from ..errors import UserError
from ..foreign import kind_of, parse_json, read_bytes, read_whole
from .prediction import Texts

_TABLES = (".csv", ".tsv")


def read_source(path: Path | None, encoding: str, advice: str) -> str:
    """The whole of a file (also gzip), or of standard input, as text.

    Raises UserError for a file that is missing, of another encoding, or holds what no tokenizer
    takes: half of a surrogate pair.
    """
    where = path or "standard input"
    if path is None and sys.stdin.isatty():
        print("reading standard input to its end (Ctrl-D)", file=sys.stderr)
    try:
        content = read_bytes(path) if path else read_whole(sys.stdin.buffer, str(where))
        text = content.decode(encoding)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; {advice}") from None
    except (UnicodeError, LookupError) as error:
        raise UserError(f"{where}: not {encoding} ({error}); give --encoding") from None
    check_unicode([text], str(where))
    return text


def check_unicode(texts: Sequence[str], where: str) -> None:
    """Refuse a lone surrogate, as JSON's \\ud800: it is no character, and no tokenizer takes it."""
    for number, text in enumerate(texts, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            bad = ascii(text[error.start])
            raise UserError(
                f"{where}: text {number} holds {bad}, half of a character; remove it"
            ) from None


def split_lines(text: str) -> list[str]:
    """Lines as files have them, ended by \\n or \\r\\n.

    Other marks that Unicode calls line ends (U+2028, U+0085, form feed) are a part of the text.
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def as_pairs(lines: Sequence[str], where: str, drop_missing: bool = False) -> Texts:
    """Lines as texts, or as pairs if they hold a tab; UserError for a mixture or an empty text.

    With `drop_missing`, lines without a text, or without one of a pair, are left out, told on
    stderr.
    """
    parts = [tuple(part.strip() for part in line.split("\t")) for line in lines]
    empty = [number for number, texts in enumerate(parts, 1) if not all(texts)]
    if drop_missing and empty:
        print(f"{where}: empty texts left out: {len(empty):,}, first {empty[0]}", file=sys.stderr)
        parts, empty = [texts for texts in parts if all(texts)], []
    if not parts:
        raise UserError(f"{where}: no texts; give at least one")
    if empty:
        raise UserError(f"{where}: text {empty[0]} is empty; write it, or add --drop-missing")
    for number, texts in enumerate(parts, 1):
        if len(texts) != len(parts[0]) or len(texts) > 2:
            raise UserError(
                f"{where}: text {number} has {len(texts) - 1} tabs and the first "
                f"{len(parts[0]) - 1}; give single texts without, or pairs with one tab each"
            )
    check_unicode(lines, where)
    if len(parts[0]) == 1:
        return [text for (text,) in parts]
    return [(first, second) for first, second in parts]


def read_texts(
    path: Path | None, columns: Sequence[str] | None, encoding: str, drop_missing: bool = False
) -> Texts:
    """Texts, or pairs, of a file or of standard input: a line each, or a row of a table.

    A table (.csv, .tsv, or any file with `columns`) is never read as lines: without `columns` the
    one with a usual name is taken, as distill_csv.py does. Raises UserError for JSON, parquet and
    spreadsheets.
    """
    where = str(path or "standard input")
    if path and kind_of(path) in NO_TEXT:
        raise UserError(
            f"{where}: a classifier reads lines of text or a table (.csv, .tsv); write one of these"
        )
    if path and (columns or kind_of(path) in _TABLES):
        table = read_csv(path, encoding)
        names = [
            find_column(list(table.columns), name, TEXT_NAMES, "--columns", where)
            for name in columns or [None]
        ]
        rows = table[names].fillna("").replace(r"\s+", " ", regex=True)  # tabs join the pairs
        return as_pairs(
            ["\t".join(row) for row in rows.itertuples(index=False)], where, drop_missing
        )
    lines = split_lines(read_source(path, encoding, "give one text a line"))
    while lines and not lines[-1].strip():
        lines.pop()
    return as_pairs(lines, where, drop_missing)


def _parse_rows(text: str, where: str) -> list:
    """The objects of a JSON list, of JSON lines, or of a file in SQuAD's layout."""
    try:
        whole = parse_json(text)
        if isinstance(whole, dict) and isinstance(whole.get("data"), list):
            return squad_rows(text, where)
        return whole if isinstance(whole, list) else [whole]
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise UserError(f"{where}: not a JSON list ({error}); mend it") from None
        rows = []
    for number, line in enumerate(split_lines(text), 1):
        try:
            rows += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(
                f"{where}: line {number} is no JSON ({error}); give a list or one object a line"
            ) from None
    return rows


class Asked(NamedTuple):
    """Questions and their contexts, their ids in the file ("": none), and where they are from."""

    questions: list[str]
    contexts: list[str]
    ids: list[Any]
    where: str


def read_questions_and_contexts(
    path: Path | None, columns: Sequence[str] | None, encoding: str
) -> Asked:
    """Questions and contexts of a file or of standard input: a table, JSON, JSON lines, SQuAD."""
    where = str(path or "standard input")
    names = ("question", "context") if columns is None else tuple(columns)
    if len(names) != 2:
        raise UserError("--columns: name the question's column and the context's")
    if path and kind_of(path) in _TABLES:
        table = read_csv(path, encoding)
        usual = (COLUMNS["question"], COLUMNS["context"])
        given = columns or (None, None)
        found = [
            find_column(list(table.columns), name, known, "--columns", where)
            for name, known in zip(given, usual)
        ]
        found += ["id"] if "id" in table.columns else []
        cells = table[found].fillna("").itertuples(index=False)
        rows = [dict(zip((*names, "id"), row)) for row in cells]
    else:
        advice = "give JSON or CSV with question and context"
        rows = _parse_rows(read_source(path, encoding, advice), where)
    if not rows:
        raise UserError(f"{where}: no questions; give --question and --context, or a file")
    for number, row in enumerate(rows, 1):
        for name in names:
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{where}: row {number} has no text {name!r}; add it")
    questions, contexts = ([row[name] for row in rows] for name in names)
    for texts in (questions, contexts):
        check_unicode(texts, where)
    return Asked(questions, contexts, [row.get("id", "") for row in rows], where)
