"""Questions with their paragraphs and answers: SQuAD's files, plain CSVs, a chosen subset."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from ..errors import UserError, first_problem
from ..foreign import kind_of, read_bytes
from .csv import find_column, read_csv

COLUMNS = {
    "question": ("question", "query"),
    "context": ("context", "paragraph", "passage", "text"),
    "answer": ("answer", "answer_text", "answers"),
}
KEY_DIGITS = 12  # hexadecimal: 48 bits keep 87,599 questions apart


class _Answer(BaseModel):
    text: str
    answer_start: Annotated[int, Field(ge=-1, lt=2**31)]


class _Question(BaseModel):
    id: str = ""
    question: str
    answers: list[_Answer] = []


class _Paragraph(BaseModel):
    context: str
    qas: list[_Question]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _SquadFile(BaseModel):
    data: list[_Article]


def read_questions(
    path: Path,
    columns: Sequence[str] | None = None,
    drop_unanswerable: bool = False,
    encoding: str = "utf-8-sig",
) -> list[dict]:
    """The rows (id, context, question, answers: {text, answer_start}) of a .json, .csv or .tsv.

    A JSON file is one of SQuAD's, arXiv 1606.05250: `data > paragraphs > qas > answers`. A CSV has
    a question, a context and one answer a row, in `columns` or in those with the usual names, and
    may have an `id`; the answer starts where the context has it first. `encoding` is that of a CSV.

    Raises UserError for a file that is not so, empty texts, equal ids, and the first question
    without an answer in its context (SQuAD v2's unanswerable ones), unless `drop_unanswerable`.
    """
    kind = kind_of(path)
    if kind not in (".json", ".csv", ".tsv"):
        raise UserError(f"{path}: neither .json nor .csv; give a file of SQuAD's or a CSV")
    if kind == ".json" and columns:
        raise UserError(f"{path}: --columns is for CSVs; leave it out")
    rows = _read_squad(path) if kind == ".json" else _read_csv(path, columns, encoding)
    texts = {name: [[row[name]] for row in rows] for name in ("id", "question", "context")}
    texts["answer"] = [row["answers"]["text"] for row in rows]
    for name, parts in texts.items():
        if empty := [row["id"] for row, own in zip(rows, parts) if not all(map(str.strip, own))]:
            raise UserError(f"{path}: question {empty[0]!r} has an empty {name}; mend or remove it")
    repeated = [key for key, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: id {repeated[0]!r} occurs twice; give every question its own")
    bare = [row["id"] for row in rows if not row["answers"]["text"]]
    if bare and not drop_unanswerable:
        raise UserError(
            f"{path}: question {bare[0]!r} has no answer in its context ({len(bare):,} of "
            f"{len(rows):,} questions); models here always answer, so SQuAD v2's unanswerable "
            "questions are not for them: mend them or add --drop-unanswerable"
        )
    rows = [row for row in rows if row["answers"]["text"]]
    if not rows:
        raise UserError(f"{path}: no question with an answer; give some")
    return rows


def _read_squad(path: Path) -> list[dict]:
    try:
        content = read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; give one of SQuAD's") from None
    return squad_rows(content.removeprefix(b"\xef\xbb\xbf"), str(path))


def squad_rows(content: str | bytes, where: str) -> list[dict]:
    """The rows, as of `read_questions`, of JSON in SQuAD's layout; UserError for any other.

    Ids and answers may be missing: `predict.py` asks for neither.
    """
    try:
        file = _SquadFile.model_validate_json(content)
    except ValidationError as error:
        raise UserError(
            f"{where}: not in SQuAD's layout: {first_problem(error, 'the file', ' > ')}; expected "
            "data > paragraphs > qas > answers with text and answer_start"
        ) from None
    return [
        _row(found.id, paragraph.context, found.question, found.answers)
        for article in file.data
        for paragraph in article.paragraphs
        for found in paragraph.qas
    ]


def _read_csv(path: Path, columns: Sequence[str] | None, encoding: str) -> list[dict]:
    table = read_csv(path, encoding)
    given = columns or (None,) * len(COLUMNS)
    found = {
        name: find_column(list(table.columns), column, usual, f"{name} (--columns)", str(path))
        for (name, usual), column in zip(COLUMNS.items(), given, strict=True)
    }
    texts = {name: table[column].fillna("").tolist() for name, column in found.items()}
    ids = [f"{path.stem}-{number}" for number in range(1, len(table) + 1)]  # data rows from 1
    if "id" in table.columns:
        ids = table["id"].fillna("").tolist()
    rows = []
    for key, question, context, answer in zip(ids, *texts.values(), strict=True):
        answer = answer.strip()
        start = context.find(answer) if answer else -1
        answers = [_Answer(text=answer, answer_start=start)] if start >= 0 else []
        rows.append(_row(key, context, question, answers))
    return rows


def _row(key: str, context: str, question: str, answers: Sequence[_Answer]) -> dict:
    starts = [answer.answer_start for answer in answers]
    spans = {"text": [answer.text for answer in answers], "answer_start": starts}
    return {"id": key, "context": context, "question": question, "answers": spans}


def misplaced(rows: Iterable[dict]) -> int:
    """Answers that do not stand in the context where they say; training leaves them out."""
    return sum(
        row["context"][start : start + len(text)] != text
        for row in rows
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    )


def question_key(question: str, context: str, answer: str) -> str:
    """Short hash of a question, its paragraph and its answer without white space at the ends."""
    text = "\0".join((question, context, answer.strip()))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def choose_questions(rows: Iterable[dict], keys: Sequence[str]) -> list[dict]:
    """The rows with these keys, see `question_key`, in the order of the keys.

    Their ids are new, and each answer starts where the paragraph has it first. Raises UserError
    when a key has no row.
    """
    wanted, found = set(keys), {}
    for row in rows:
        for answer in row["answers"]["text"][:1]:
            key = question_key(row["question"], row["context"], answer)
            if key in wanted:
                found[key] = row | {"answer": answer.strip()}
    if missing := wanted - found.keys():
        raise UserError(
            f"{len(missing):,} of {len(wanted):,} chosen questions are not there; "
            "give the data that they were chosen from"
        )
    chosen = []
    for number, key in enumerate(keys):
        row = found[key]
        context, answer = row["context"], row["answer"]
        spans = [_Answer(text=answer, answer_start=context.find(answer))]
        chosen.append(_row(f"subset-{number:05d}", context, row["question"], spans))
    return chosen
