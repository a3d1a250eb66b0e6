"""What data is expected: `data/sources.yaml`, rows and content hash of every split."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter

from ..errors import UserError, refusing
from ..foreign import read_yaml
from ..paths import OFFICIAL_SOURCES, SOURCES
from ..settings import FileName
from . import grammar
from .tasks import is_embedded


class _Split(BaseModel):
    rows: NonNegativeInt
    sha256: str | None
    chosen_from: FileName = ""
    chosen_by: FileName = ""


class _Source(BaseModel):
    splits: dict[FileName, _Split]
    columns: list[str] = []
    hub: str = ""
    revision: str = ""
    config: str | None = None
    archive: str = ""
    files: NonNegativeInt = 0


# Files are read and written by the names of data sets: a path goes down from the folder only.
_DataSet = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$")]
_SOURCES = TypeAdapter(dict[_DataSet, _Source])


def read_sources(path: Path) -> dict:
    """A list of data sets: for each its origin, licence, columns and splits; UserError if not."""
    listed = read_yaml(path) or {}
    with refusing(path, "not a list of data sets", "mend it, or choose another folder"):
        _SOURCES.validate_python(listed, strict=True)
    return listed


@cache
def sources() -> dict:
    """The list of the data in use, see `read_sources`.

    Empty where the kit was installed without the project that brings the list.
    """
    return read_sources(SOURCES) if SOURCES.is_file() else {}


@cache
def official_sources() -> dict:
    """The project's own list, whatever data are in use; empty where the project is not there."""
    return read_sources(OFFICIAL_SOURCES) if OFFICIAL_SOURCES.is_file() else {}


def is_listed(found: dict, source: dict, split: str) -> bool:
    """Whether rows and hash are those of a list; a null hash is not compared."""
    expected = source["splits"].get(split, {"rows": None, "sha256": None})
    return expected["rows"] == found["rows"] and expected["sha256"] in (None, found["sha256"])


def recorded_name(dataset: str, split: str, found: dict) -> str:
    """A split as records and model cards name it: with `own/` if the rows found are not official.

    import_questions.py calls questions of any origin `squad`. A list that says where its rows were
    fetched is taken at its word.
    """
    official, listed = official_sources().get(dataset), sources().get(dataset, {})
    name = f"{dataset}/{split}"
    if not official or is_listed(found, official, split) or {"hub", "archive"} & listed.keys():
        return name
    return f"own/{name}"


def rows_sha256(rows: Iterable[dict]) -> str:
    """SHA-256 over rows: the same for any parquet writer or compression."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


@cache
def expected_split(dataset: str, split: str) -> dict:
    """`rows` and `sha256` that a split must have; embedded data are generated to tell."""
    if is_embedded(dataset):
        generated = grammar.build_sentiment(split)
        return {"rows": len(generated), "sha256": rows_sha256(generated)}
    try:
        return sources()[dataset]["splits"][split]
    except KeyError:
        raise UserError(f"{dataset}/{split}: not listed in {SOURCES}; add it") from None


class DataUsed(BaseModel):
    """One data set as it was read: how many rows, and the SHA-256 over them (`rows_sha256`)."""

    model_config = ConfigDict(extra="forbid")
    name: str
    rows: int
    sha256: str
