"""Data sets that are not here yet: from the hub, or built as `data/sources.yaml` says."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets

from ..errors import UserError, raise_if_disk_full
from ..files import replacing_file
from ..paths import DATA, SOURCES
from .questions import choose_questions
from .sources import DataUsed, expected_split, sources
from .tables import check_table, load_table, rows_of
from .wikipedia import build_articles


def fetch(dataset: str, splits: Iterable[str], copy: Path | None = None) -> Iterator[DataUsed]:
    """Write the splits as `DATA_DIR/<dataset>/<split>.parquet`, unless good ones are there.

    Rows and hash are those of `data/sources.yaml` before anything is written. `copy` is an archive
    or folder to be read in place of a data set's `archive`. Raises UserError when a split is not
    listed, cannot be had or differs.
    """
    splits = list(splits)
    for split in splits:
        expected_split(dataset, split)
    source, missing = sources()[dataset], []
    if not source.get("columns"):
        raise UserError(f"{dataset}: data/sources.yaml names no columns of it; add them")
    if "archive" in source:
        splits = list(source["splits"])  # it is read once for all
    if copy is not None and "archive" not in source:
        raise UserError(f"{dataset}: it has no archive, --from is not for it; set DATA_DIR")
    for split in splits:
        try:
            yield load_table(dataset, split, source["columns"])[1]
        except UserError as error:
            missing.append(split)
            if (DATA / dataset / f"{split}.parquet").exists():
                print(f"{error}: fetching it again")
    for split, table in _tables(dataset, source, missing, copy):
        where = f"{dataset}/{split}, as fetched"
        advice = "its source has changed, or the copy is another one"
        sha256 = check_table(
            table, expected_split(dataset, split), source["columns"], where, advice
        )
        with replacing_file(DATA / dataset / f"{split}.parquet") as temporary:
            table.select_columns(source["columns"]).to_parquet(temporary)
        yield DataUsed(name=f"{dataset}/{split}", rows=len(table), sha256=sha256)


def _tables(
    dataset: str, source: dict, splits: list[str], copy: Path | None
) -> Iterator[tuple[str, datasets.Dataset]]:
    if splits and "archive" in source:
        rows = build_articles(copy or source["archive"], source.get("files", 0))
        for split in splits:
            yield split, datasets.Dataset.from_list(rows[split])
        return
    for split in splits:
        listed = source["splits"][split]
        if "chosen_from" in listed:
            list(fetch(dataset, [listed["chosen_from"]]))
            whole, _ = load_table(dataset, listed["chosen_from"], source["columns"])
            keys = (SOURCES.parent / listed.get("chosen_by", "")).read_text().split()
            yield split, datasets.Dataset.from_list(choose_questions(rows_of(whole), keys))
        else:
            yield split, _from_hub(dataset, source, split)


def _from_hub(dataset: str, source: dict, split: str) -> datasets.Dataset:
    if "hub" not in source:
        raise UserError(f"{dataset}/{split}: data/sources.yaml names no origin; put the file there")
    try:
        return datasets.load_dataset(
            source["hub"], source.get("config"), split=split, revision=source.get("revision")
        )
    except Exception as error:
        raise_if_disk_full(error)
        raise UserError(
            f"{dataset}/{split}: not fetched from the hub ({type(error).__name__}); "
            "check the network, or set DATA_DIR to a folder that holds it"
        ) from None
