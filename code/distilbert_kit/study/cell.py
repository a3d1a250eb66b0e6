"""A cell of the experiment graph: what decides its result, what it makes, whether that is here.

A cell is current when its record carries the cell's key: the hash of its settings, of its
parents' keys, of the content of data, text files and given weights, and of its stage's version.
File times say nothing, git does not keep them. Light (no torch): the Snakefile imports it.
"""

import shlex
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..data.sources import expected_split
from ..errors import UserError
from ..files import (
    add_files,
    check_output_file,
    check_output_folder,
    check_unchanged,
    content_key,
    write_atomically,
)
from .recipes import Recipe
from .records import Input, Record, is_current, read_record

# Raise a stage's version when the meaning of its result changes: records from before are stale.
STAGE_VERSIONS = {
    "corpus": 1,
    "extract": 1,
    "pretrain": 1,
    "distill": 1,
    "tune": 1,
    "finetune": 1,
    "quantize": 4,  # 1: weights of 8 bits; 2: latency beside scores; 3: all layers in int8
    "cross_evaluate": 1,
}

# The same of the benchmark's stages.
BENCHMARK_STAGES = {
    "size_speed": 1,
    "shape_speed": 1,
    "inference_speed": 1,
    "training_speed": 2,  # 1: against the Trainer as it comes, in fp32 and in random order
    "distillation_speed": 3,  # 2: losses off in two ways could cancel out; 1: random order
    "corpus_speed": 1,
    "question_answering_speed": 1,
    "latency": 3,  # 1: few calls where one backend is slow; 2: graphs that look for empty rows
}


@dataclass(frozen=True)
class Cell:
    """One run of one stage, with everything that decides its result."""

    recipe: Recipe
    stage: str
    name: str
    identity: dict
    settings: dict
    command: list[str]
    parents: tuple["Cell", ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    inputs: tuple[Input, ...] = ()
    splits: tuple[str, ...] = ()  # those with predictions

    @property
    def version(self) -> int:
        """The version of its result's meaning."""
        return {**STAGE_VERSIONS, **BENCHMARK_STAGES}[self.identity.get("benchmark", self.stage)]

    @cached_property
    def key(self) -> str:
        """Hash of what decides the result."""
        return content_key(
            {
                "stage": [self.stage, self.version],
                "cell": self.identity,
                "settings": self.settings,
                "parents": [parent.key for parent in self.parents],
                "data": [expected_split(*split) for split in self.data],
                "inputs": [given.model_dump() for given in self.inputs],
            }
        )

    @property
    def record(self) -> Path:
        """Where its record is."""
        return self.recipe.folder / self.stage / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """What the cell makes beside its record: weights or a corpus, not in git."""
        kind = "corpus" if self.stage == "corpus" else f"models/{self.name}"
        return self.recipe.folder / kind

    @property
    def checkpoints(self) -> Path:
        """Where unfinished trainings of this cell keep their states."""
        return self.recipe.folder / "checkpoints" / self.name

    @property
    def resumable(self) -> dict:
        """The arguments by which a training of this cell goes on after an interruption.

        A state of other settings is not looked at, nor one of parents that were made again since:
        half of the training would be of the first teacher, and the record would name the second.
        """
        run = content_key([self.key, self.made_from])
        return {"checkpoints": self.checkpoints / run, "identity": run, "description": self.name}

    def drop_checkpoints(self) -> None:
        """Remove the state of this training, finished now, and of any other of this cell."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def predictions(self, split: str) -> Path:
        """Parquet file of the per-example predictions on a split."""
        return self.recipe.folder / "predictions" / f"{self.name}-{split}.parquet"

    @property
    def outputs(self) -> list[Path]:
        """The files of predictions that it writes beside its record."""
        return [self.predictions(split) for split in self.splits]

    @property
    def origins(self) -> list[str]:
        """The given weights that it descends from."""
        own = self.settings.get("weights") or {}
        own = {own} if isinstance(own, str) else set(own.values())
        return sorted(own.union(*(parent.origins for parent in self.parents)))

    @property
    def provenance(self) -> dict:
        """Arguments for `records.recording`; UserError when something that it reads is missing."""
        for given in self.inputs:
            if given.content is None:
                raise UserError(
                    f"{self.name}: {given.name} is missing; add it (paths start at {Path.cwd()}), "
                    "or mend the recipe"
                )
        return {
            "stage": self.stage,
            "stage_version": self.version,
            "inputs": self.inputs,
            "cell": self.identity,
            "scale": self.recipe.scale,
            "recipe": self.recipe.name,
            "settings": self.settings,
            "key": self.key,
            "made_from": self.made_from,
        }

    def check_outputs(self, saves: bool = True) -> None:
        """Raise UserError unless all that it makes can be written: asked before the work is done.

        `saves`: whether it makes its folder too.
        """
        for path in self.outputs:
            check_output_file(path)
        if saves:
            check_output_folder(self.folder)

    def stamp_folder(self) -> None:
        """Leave the record, and of weights a model card, with what was made.

        The record tells later which cell that is from.
        """
        record = self.record.read_bytes()
        if self.stage == "corpus":
            write_atomically(self.folder / "record.json", record)
        else:
            add_files(self.folder, {"record.json": record})  # first: now the cell is done
            from .model_card import write_model_card

            write_model_card(self.folder, self.read_record(), self.origins)
        self.drop_checkpoints()

    def is_recorded(self) -> bool:
        """Whether the record is there and current."""
        try:
            record = self.read_record()
        except UserError:
            return False
        current = record.status == "ok" and record.key == self.key
        return current and all(map(record.wrote, self.outputs))

    def read_record(self) -> Record:
        """Its record, current or not; UserError if there is none, or one of another cell."""
        record = read_record(self.record)
        if (record.stage, record.cell) != (self.stage, self.identity):
            raise UserError(
                f"{self.record}: the record of another cell, {record.stage} {record.cell}; delete "
                "it and run its stage"
            )
        return record

    def has_folder(self) -> bool:
        """Whether what it makes is here too, from exactly this cell."""
        return is_current(self.folder / "record.json", self.key)

    @property
    def read_by_others(self) -> Path:
        """The record of what other cells read of it: of a tuning its own, else its folder's."""
        return self.record if self.stage == "tune" else self.folder / "record.json"

    def is_ready(self) -> bool:
        """Whether what other cells read of it is here, from exactly this cell."""
        return is_current(self.read_by_others, self.key)

    @property
    def made_from(self) -> dict[str, str]:
        """Hashes of the records of its parents' runs that it reads, by the parents' names."""
        read = {p.name: read_record(p.read_by_others) for p in self.parents if p.is_ready()}
        return {name: record.sha256 for name, record in read.items() if record.sha256}

    @property
    def made(self) -> Path:
        """The folder of what it makes; UserError unless it is here, whole and of this very cell."""
        if not self.has_folder():
            there = (self.folder / "record.json").exists()
            wrong = (
                "made with other settings, parents or data" if there else "missing or unfinished"
            )
            unsaved = self.stage == "finetune" and "--save" not in self.command
            raise UserError(
                f"{self.folder}: {wrong}; run {self.shown_command}{' --save' * unsaved}"
            )
        check_unchanged(self.folder)
        return self.folder

    @property
    def shown_command(self) -> str:
        """The command that runs it, as a person types it."""
        _, script, *arguments = self.command
        return shlex.join(["python", f"code/{Path(script).name}", *arguments])
