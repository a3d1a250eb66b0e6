"""What data is expected: `data/sources.yaml`, rows and content hash of every split."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache

import yaml
from pydantic import BaseModel, ConfigDict

from ..errors import UserError
from ..paths import SOURCES
from . import grammar
from .tasks import is_embedded


@cache
def sources() -> dict:
    """The whole list: for each data set its origin, licence, columns and splits.

    Empty where the kit was installed without the project that brings the list.
    """
    return yaml.safe_load(SOURCES.read_text()) if SOURCES.is_file() else {}


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
        raise UserError(f"{dataset}/{split}: not listed in data/sources.yaml; add it") from None


class DataUsed(BaseModel):
    """One data set as it was read: rows and the SHA-256 of its file (or generated content)."""

    model_config = ConfigDict(extra="forbid")
    name: str
    rows: int
    sha256: str
