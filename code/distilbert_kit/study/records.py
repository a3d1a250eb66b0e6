"""The result record: one flat schema for every stage, with provenance, written atomically."""

import importlib.metadata
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.sources import DataUsed
from ..errors import UserError, first_problem
from ..files import (
    cached_sha256,
    content_key,
    file_sha256,
    locked,
    with_sha256,
    without_sha256,
    write_atomically,
)
from ..foreign import MOST_JSON, parse_json, read_text
from ..machine import machine, peak_memory_bytes
from ..paths import ROOT

SCHEMA_VERSION = 2
Scale = Literal["paper", "reduced", "embedded"]
_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "numpy",
    "onnxruntime",
    "torchao",
)


class Measured(BaseModel):
    """What differs between two equal runs: time, memory, machine, versions, commit.

    `git_dirty`: code or data differ from the commit, or code is not in it; other records may.
    Both are None where git cannot tell. `made_from`: the `sha256` of the records of what it read,
    by their names; older records have none. Weights made again, with equal settings but on another
    machine, differ in their rounding.
    """

    model_config = ConfigDict(extra="forbid")
    finished: str
    wall_seconds: float
    peak_memory_bytes: int
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None
    made_from: dict[str, str] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)


class Input(BaseModel):
    """What a cell reads from outside of recipe and data: text files, weights, the hub.

    `content`: `sha256:…` of files, `commit:…` on the hub, `versions:…` of libraries; None when it
    is not there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    content: str | None


class Output(BaseModel):
    """A file that a stage wrote beside its record, and what was in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    sha256: str


class Record(BaseModel):
    """The result of one stage on one cell.

    All but `measured` is equal in equal runs on one machine, with as many threads; the README says
    how nearly it is on another.
    `stage_version` is raised when the meaning of the stage's result changes. `sha256` is the hash
    of all the rest in the file; older records have none, and no `outputs`.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[2] = SCHEMA_VERSION
    stage: str
    stage_version: int = 1
    cell: dict[str, Any]
    status: Literal["ok", "failed"] = "ok"
    error: str | None = None
    scale: Scale
    recipe: str
    key: str
    settings: dict[str, Any]
    inputs: list[Input] = []
    data: list[DataUsed]
    metrics: dict[str, Any]
    outputs: list[Output] = []
    measured: Measured
    sha256: str | None = Field(default=None, exclude=True)

    def wrote(self, path: Path) -> bool:
        """Whether a file is there as the stage left it, as far as the record tells."""
        written = {output.name: output.sha256 for output in self.outputs}
        return path.is_file() and written.get(path.name) in (None, cached_sha256(path))


def read_record(path: Path) -> Record:
    """Read and check a record; UserError when it is cut short, changed or of another schema."""
    advice = "delete it and run its stage"
    try:
        content = read_text(Path(path), MOST_JSON)
        record = Record.model_validate_json(content)
        without_sha256(parse_json(content))
        return record
    except FileNotFoundError:
        raise UserError(f"{path}: no such record; run its stage first") from None
    except ValidationError as error:
        what = first_problem(error, "file")
        raise UserError(f"{path}: not a valid record ({what}); {advice}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a valid record ({error}); {advice}") from None


def is_current(path: Path, key: str) -> bool:
    """Whether `path` holds a good record of exactly these settings, parents and data."""
    try:
        record = read_record(path)
    except UserError:
        return False
    return record.status == "ok" and record.key == key


def _git(*arguments: str) -> str | None:
    """What git prints; None when it fails or is not here.

    It takes no lock: one that is killed with the run would leave it, and no commit could be made.
    """
    command = ["git", "--no-optional-locks", *arguments]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _in_repository() -> bool:
    """Whether git knows this project: one unpacked inside of another repository is not of that."""
    return _git("ls-files", "--error-unmatch", "code/distilbert_kit/study/records.py") is not None


def git_state() -> dict[str, Any]:
    """The commit, and whether code or data differ from it; None where git cannot tell."""
    if not _in_repository():
        return {"git_commit": None, "git_dirty": None}
    changed = _git("status", "--porcelain", "--untracked-files=no", "code", "data")
    added = _git("status", "--porcelain", "--untracked-files=all", "code")
    dirty = None if changed is None or added is None else bool(changed or added)
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": dirty}


def repository_address() -> str:
    """The web page of the repository that this clone came from; "" where it has none."""
    remote = (_in_repository() and _git("remote", "get-url", "origin")) or ""
    start = r"(?:https://(?:[^@/]+@)?|(?:ssh://)?git@)"  # whoever cloned is left out
    found = re.fullmatch(rf"{start}([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?", remote)
    return f"https://{found[1]}/{found[2]}" if found else ""


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _command() -> str:
    """The command line, with paths inside the project relative and others by name only."""
    words = []
    for word in (Path(sys.argv[0]).name, *sys.argv[1:]):
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        path = Path(value)
        if path.is_absolute():
            value = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        words.append(f"{option}{equals}{value}")
    return shlex.join(["python", f"code/{words[0]}", *words[1:]])


class Draft(BaseModel):
    """What a stage fills in while it runs; `recording` adds the rest."""

    data: list[DataUsed] = []
    metrics: dict[str, Any] = {}
    outputs: list[Output] = []
    extra: dict[str, Any] = {}

    def add_output(self, path: Path) -> None:
        """Note a file that was written beside the record."""
        self.outputs.append(Output(name=path.name, sha256=file_sha256(path)))


@contextmanager
def recording(
    path: Path,
    *,
    stage: str,
    cell: dict[str, Any],
    scale: Scale,
    recipe: str,
    settings: dict[str, Any],
    key: str | None = None,
    stage_version: int = 1,
    inputs: Sequence[Input] = (),
    made_from: dict[str, str] | None = None,
) -> Iterator[Draft]:
    """Run a stage and write its record to `path`; a failed run is recorded under `failed/`.

    Yields a draft whose `data`, `metrics`, `outputs` and `extra` (measured figures) the stage
    fills in. Without `key`, the key is the hash of stage, cell, settings, inputs and data.
    UserError while another process makes the same record.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise UserError(
            f"{path.parent}: cannot be written ({refused.strerror}); "
            "point RESULTS_DIR at a folder that can"
        ) from None
    draft, started = Draft(), time.perf_counter()
    code = git_state()  # the code that runs: a commit may be made meanwhile
    error: BaseException | None = None
    # One writer among data-parallel processes (torchrun numbers them in RANK).
    writes = int(os.environ.get("RANK", 0)) == 0
    with locked(path) if writes else nullcontext():
        try:
            yield draft
        except BaseException as caught:
            error = caught
            raise
        finally:
            record = Record(
                stage=stage,
                stage_version=stage_version,
                cell=cell,
                status="ok" if error is None else "failed",
                error=error and _said(error),
                scale=scale,
                recipe=recipe,
                key=key
                or content_key(
                    [
                        [stage, stage_version, cell, settings],
                        [used.model_dump() for used in (*inputs, *draft.data)],
                    ]
                ),
                settings=settings,
                inputs=list(inputs),
                data=draft.data,
                metrics=draft.metrics,
                outputs=draft.outputs,
                measured=Measured(
                    finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    wall_seconds=round(time.perf_counter() - started, 3),
                    peak_memory_bytes=peak_memory_bytes(),
                    command=_command(),
                    machine=machine(),
                    versions=_versions(),
                    **code,
                    made_from=made_from or {},
                    extra=draft.extra,
                ),
            )
            # Bad input is the user's to mend and no run; a stopped or crashed run counts.
            if writes and error is None:
                write_record(path, record)
            elif writes and not isinstance(error, (UserError, SystemExit)):
                with suppress(OSError):  # the first error is the one to show
                    write_record(_place_of_failure(path), record)


def _said(error: BaseException) -> str:
    """Its first line; further ones hold commands, and an OSError names folders of the machine."""
    said = [str(error)]
    if isinstance(error, OSError):  # its file may be a number, or only in the text (safetensors)
        said = [error.strerror, Path(str(error.filename or "")).name]
    return ": ".join(filter(None, [type(error).__name__, *said])).partition("\n")[0]


def _place_of_failure(path: Path) -> Path:
    """A name for the record of a failed run that none has: a clock may be set back."""
    stem = f"{path.stem}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    places = (path.parent / "failed" / f"{name}.json" for name in names)
    return next(place for place in places if not place.exists())


def write_record(path: Path, record: Record) -> None:
    """Write a record; what is on disk afterwards is the old file or the whole new one."""
    content = with_sha256(json.loads(record.model_dump_json()))
    write_atomically(Path(path), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
