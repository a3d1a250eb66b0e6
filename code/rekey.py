"""Carry records of schema 1 over to today's keys, where all that decides them is provably the same.

    python code/rekey.py --recipe study

The key of schema 1 hashed stage, cell, settings, parents' keys and data hashes. A record whose key
follows by that rule from what it, its parents' records and data/sources.yaml hold was made of just
that. Where the recipe asks for the same today, the record takes today's key and keeps the old one
as `rekeyed_from` among its measured figures. `precision: auto` is bf16 on a machine with
bf16 instructions, which the record names. The text of a corpus must be here to be compared. The
others stay as they are, stale.
"""

import argparse

from distilbert_kit.script import entry_point

from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.listed import DataUsed, expected_split
from distilbert_kit.errors import UserError
from distilbert_kit.files import content_key, file_sha256
from distilbert_kit.models.packaged import PACKAGED_SHA256
from distilbert_kit.paths import DATA
from distilbert_kit.study.cell import Cell
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.inputs import open_recipe
from distilbert_kit.study.records import Record, read_record, write_record


def old_key(record: Record) -> str:
    """The key of schema 1, whether the record was carried over or not."""
    return record.measured.extra.get("rekeyed_from", record.key)


def settings_today(settings: object, bf16: bool) -> object:
    """Recorded settings with `auto` in place of bf16, where that is what auto means."""
    if not isinstance(settings, dict):
        return settings
    today = {key: settings_today(value, bf16) for key, value in settings.items()}
    return today | {"precision": "auto"} if bf16 and today.get("precision") == "bf16" else today


def corpus_data(cell: Cell, record: Record) -> list[DataUsed]:
    """What a corpus was made of; UserError unless the same files are here, with their hashes."""
    recorded = [source.get("files") for source in record.metrics["settings"]["sources"]]
    used = []
    for (dataset, split), files in zip(cell.data, recorded, strict=True):
        used.append(open_source(f"data:{dataset}/{split}").used)
        name = f"{split}.parquet"
        if files != {name: file_sha256(DATA / dataset / name)}:
            raise UserError(f"made of another {dataset}/{name}")
    return used


def rekeyed(cell: Cell, record: Record) -> Record:
    """The record under today's key; UserError that says what is not proven."""
    parents = [old_key(read_record(parent.record)) for parent in cell.parents]
    hashes = [expected_split(*split)["sha256"] for split in cell.data]
    before = [cell.stage, cell.identity, record.settings, parents, hashes]
    if record.status != "ok" or record.key != content_key(before):
        raise UserError("settings, parents or data are not those of its key")
    bf16 = record.measured.machine.get("bf16_instructions", False)
    if settings_today(record.settings, bf16) != cell.settings:
        raise UserError("the recipe has other settings")
    if cell.version != record.stage_version:
        raise UserError("its stage has another meaning")
    packaged = {f"weights:{name}" for name in PACKAGED_SHA256}
    if unknown := [given.name for given in cell.inputs if given.name not in packaged]:
        raise UserError(f"the content of {unknown[0]} was not recorded")
    extra = record.measured.extra | {"rekeyed_from": record.key}
    if record.settings != cell.settings:
        extra |= {"precision": "bf16"}
    changes = {"key": cell.key, "settings": cell.settings, "inputs": list(cell.inputs)}
    if cell.stage == "corpus":
        changes["data"] = corpus_data(cell, record)
    measured = record.measured.model_copy(update={"extra": extra})
    return record.model_copy(update=changes | {"measured": measured})


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="study", help="name or file (default: study)")
    recipe = open_recipe(parser.parse_args().recipe)
    proven: dict[str, bool] = {}
    count = 0

    def carry(cell: Cell) -> bool:
        """Whether the record is current, parents first; carries it over where that is proven."""
        nonlocal count
        if cell.key not in proven:
            proven[cell.key] = all(list(map(carry, cell.parents)))
            if proven[cell.key] and not cell.is_recorded():
                try:
                    write_record(cell.record, rekeyed(cell, read_record(cell.record)))
                    count += 1
                except UserError as error:
                    print(f"{cell.stage}/{cell.name}: {error}")
                    proven[cell.key] = False
            elif not proven[cell.key]:
                print(f"{cell.stage}/{cell.name}: a parent is stale")
        return proven[cell.key]

    current = sum(map(carry, evidence_cells(recipe)))
    print(f"{count} records carried over; {current} of {len(evidence_cells(recipe))} are current")


if __name__ == "__main__":
    main()
