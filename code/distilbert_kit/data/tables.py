"""Data sets as tables: read, and checked against `data/sources.yaml`."""

import glob
from collections.abc import Iterator, Sequence
from typing import cast

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, config, load_dataset

from ..errors import UserError
from ..paths import DATA
from . import grammar
from .sources import DataUsed, expected_split, recorded_name, rows_sha256
from .tasks import Task, is_embedded


def load_table(
    dataset: str, split: str, columns: Sequence[str]
) -> tuple[datasets.Dataset, DataUsed]:
    """Read `DATA_DIR/<dataset>/<split>.parquet`, checked against `data/sources.yaml`.

    Raises UserError when the file is missing, cut short, lacks a column, or differs in rows or
    content hash from what `data/sources.yaml` lists.
    """
    expected = expected_split(dataset, split)
    name = recorded_name(dataset, split, expected)
    if is_embedded(dataset):
        table = datasets.Dataset.from_list(grammar.build_sentiment(split))
        return table, DataUsed(name=name, **expected)
    path = DATA / dataset / f"{split}.parquet"
    if not path.is_file():
        raise UserError(
            f"{path}: missing; run `make data DATASET={dataset}`, or set DATA_DIR to a folder that "
            "holds it, or use recipe quick with its own task, sentiment: it needs no data"
        )
    with path.open("rb"):  # a file that cannot be read is told by its own name
        pass
    try:
        # Rows are counted before any is unpacked: a few kilobytes may say that there are billions.
        _check_rows(pq.read_metadata(path).num_rows, expected, str(path))
        table = load_dataset("parquet", data_files=glob.escape(str(path)), split="train")
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the cache
            where = error.filename or config.HF_DATASETS_CACHE
            raise UserError(
                f"{where}: {error.strerror}; free it, or point HF_HOME, the cache of the "
                "library datasets, at a folder that can be written"
            ) from None
        raise UserError(
            f"{path}: not a readable parquet file ({type(error).__name__}); fetch it again"
        ) from None
    found = check_table(table, expected, columns, str(path))
    return table, DataUsed(name=name, rows=len(table), sha256=found)


def _check_rows(rows: int, expected: dict, where: str, advice: str = "fetch it again") -> None:
    if rows != expected["rows"]:
        raise UserError(
            f"{where}: {rows} rows, expected {expected['rows']} of the official split; {advice}"
        )


def check_table(
    table: datasets.Dataset,
    expected: dict,
    columns: Sequence[str],
    where: str,
    advice: str = "fetch it again",
) -> str:
    """The content hash of a table's columns; UserError unless rows and hash are the `expected`."""
    if absent := [column for column in columns if column not in table.column_names]:
        raise UserError(
            f"{where}: no column {absent[0]!r} (it has {', '.join(table.column_names)}); {advice}"
        )
    _check_rows(len(table), expected, where, advice)
    found = rows_sha256(rows_of(table.select_columns(list(columns))))
    if expected["sha256"] not in (found, None):  # None: never computed, see data/sources.yaml
        raise UserError(
            f"{where}: content SHA-256 is {found[:12]}…, expected {expected['sha256'][:12]}…; "
            f"{advice}"
        )
    return found


def rows_of(table: datasets.Dataset) -> Iterator[dict]:
    """The rows of a table, in flat memory at any size."""
    for batch in cast(Iterator[dict], table.iter(1000)):
        for row in zip(*batch.values(), strict=True):
            yield dict(zip(batch, row, strict=True))


def check_task_rows(table: datasets.Dataset, task: Task, where: str) -> None:
    """Refuse unknown labels, another label order, and empty texts, naming the first row."""
    feature = table.features[task.label_column]
    # Label numbers differ between checkpoints and copies (MNLI above all): names decide.
    if isinstance(feature, ClassLabel) and tuple(feature.names) != task.labels:
        raise UserError(
            f"{where}: labels are {feature.names}, expected {list(task.labels)}; fetch the "
            "official copy or relabel it"
        )
    labels = np.asarray(table[task.label_column], dtype=float)
    if task.labels:
        bad = np.flatnonzero(~np.isin(labels, np.arange(task.num_labels)))
    else:
        bad = np.flatnonzero(~np.isfinite(labels))
    if len(bad):
        expected = f"0 to {task.num_labels - 1}" if task.labels else "a number"
        raise UserError(
            f"{where}: row {bad[0] + 1} has label {labels[bad[0]]:g}, expected {expected}; "
            "mend or drop the row"
        )
    for column in task.text_columns:
        for row, text in enumerate(table[column], 1):
            if text is None or not text.strip():
                raise UserError(f"{where}: row {row} has an empty {column}; mend or drop the row")
