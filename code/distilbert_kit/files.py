"""Files and folders that appear whole or not at all, and their hashes."""

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from .errors import UserError
from .foreign import read_json


def check_sha256(path: Path, expected: str, advice: str = "fetch the file again") -> None:
    """Raise UserError, with `advice`, unless the file has this SHA-256."""
    found = file_sha256(path)
    if found != expected:
        raise UserError(f"{path}: SHA-256 is {found[:12]}…, expected {expected[:12]}…; {advice}")


_NUMBERS = itertools.count()
# What `_temporary_name` gives: the name that is to be, the machine, the process, a number.
_TEMPORARY = re.compile(
    r"\.(?P<name>[^/]+)\.(?P<host>[0-9a-f]{6})-(?P<process>\d+)-(?P<number>\d+)\.tmp"
)


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process or machine uses: two may write one result."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{next(_NUMBERS)}.tmp")


def _written_as(name: str) -> str:
    """The name for which a killed process left a file under this temporary one."""
    folder, slash, last = name.rpartition("/")
    found = _TEMPORARY.fullmatch(last)
    return f"{folder}{slash}{found['name']}" if found else name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes of this machine left beside `path` in place of it.

    One may have been killed between the two renames that replace a folder: the old one goes back
    to its place, or the new one if there was none.
    """
    import psutil

    left: list[tuple[int, Path]] = []
    for other in path.parent.iterdir():
        found = _TEMPORARY.fullmatch(other.name)
        if not found or (found["name"], found["host"]) != (path.name, _host()):
            continue
        if not psutil.pid_exists(int(found["process"])):
            left.append((int(found["number"]), other))
    for _, other in sorted(left, reverse=True):  # the old one was renamed last
        if (other / MARK).is_file() and not os.path.lexists(path):
            with suppress(OSError):  # another process has just done so
                other.rename(path)
        else:
            _remove(other)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _temporary_name(path)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


# In a folder that the kit wrote: its files and their hashes.
MARK = ".distilbert-kit.json"
# Names that `logits_name` gives.
_LOGITS = re.compile(r"logits-[0-9a-f]+\.safetensors")


def logits_name(key: str) -> str:
    """The file of a teacher's logits, which the kit leaves beside its model; `key`: a hash."""
    return f"logits-{key}.safetensors"


def _files(folder: Path) -> dict[str, Path]:
    """The files and links below a folder, by their paths there."""
    found = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def _marked(folder: Path) -> dict[str, str]:
    """The files that the kit wrote in a folder, and their hashes, by its mark; none without one."""
    path = folder / MARK
    if not os.path.lexists(path):
        return {}
    try:
        made = read_json(path).get("files")
    except UserError:
        made = None
    if not isinstance(made, dict) or not all(map(_is_entry, made.items())):
        raise UserError(f"{path}: damaged; delete {folder}, and make it again")
    return made


def _is_entry(entry: tuple[str, Any]) -> bool:
    """Whether an entry of a mark is a file within its folder, and a hash."""
    name, sha256 = entry
    path = Path(name)
    return isinstance(sha256, str) and not path.is_absolute() and ".." not in path.parts


def mark_files(folder: Path) -> None:
    """Note in a folder's mark that the kit wrote all files that are there."""
    files = _files(folder)
    files.pop(MARK, None)
    _add_to_mark(folder, {name: file_sha256(path) for name, path in files.items()})


def _add_to_mark(folder: Path, hashes: dict[str, str]) -> None:
    write_json(folder / MARK, {"files": _marked(folder) | hashes})


def add_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files into a folder of the kit, one after the other, each whole.

    The mark names them first: a run that is killed in between leaves none of unknown origin.
    """
    hashed = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    _add_to_mark(folder, hashed)
    for name, content in contents.items():
        write_atomically(folder / name, content)


def _foreign_file(folder: Path) -> str | None:
    """A file below `folder` that the kit did not write there, or that was changed since."""
    try:
        made = _marked(folder)
    except (OSError, UserError):
        return MARK
    kept = {name: path for name, path in _files(folder).items() if name != MARK}
    unknown = (n for n in kept if _written_as(n) not in {*made, MARK} and not _LOGITS.fullmatch(n))
    changed = (n for n in made if n in kept and not _is_same(kept[n], made[n]))
    return next(unknown, None) or next(changed, None)


def _is_same(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256  # a pipe would wait for its writer


def check_unchanged(folder: Path, *names: str) -> None:
    """Raise UserError for a file that is no longer as the kit wrote it in `folder`.

    Of these names, by default of all that are there; where the kit left no mark, nothing is known.
    """
    made = _marked(folder)
    for name in names or made:
        path = folder / name
        there = name in made and os.path.exists(path)  # False for a name that is too long
        if there and not (path.is_file() and cached_sha256(path) == made[name]):
            raise UserError(
                f"{path}: not as it was written; delete {folder} and make it again, or delete "
                f"{MARK} in it if the change is yours"
            )


def _check_place(path: Path) -> None:
    """Refuse a path below a file, and one where this process may not write."""
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise UserError(f"{above}: a file, no folder can be in it; name another place")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free it, or name another place"
        ) from None


def check_output_file(path: Path) -> None:
    """Raise UserError unless a file can be written to `path`: asked before the work is done."""
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file")
    _check_place(path)


def check_output_folder(folder: Path, *inputs: str | Path) -> None:
    """Raise UserError unless a folder can be written in the place of `folder`, losing nothing.

    Nothing may be there but an empty folder or one that the kit made, without a file or a change of
    somebody else, and none of the `inputs` of the run.
    """
    place = folder.resolve()
    if os.path.lexists(place) and not place.is_dir():
        raise UserError(f"{folder}: a file; name a folder")
    if Path.cwd().is_relative_to(place):
        raise UserError(f"{folder}: the working folder or one above it; name a folder of its own")
    for given in map(Path, inputs):
        if given.exists() and given.resolve().is_relative_to(place):
            raise UserError(f"{folder}: {given} is there, which this run reads; name a new folder")
    if place.is_mount():
        raise UserError(f"{folder}: a mount point, which cannot be replaced; name a folder in it")
    if place.is_dir() and (foreign := _foreign_file(place)):
        raise UserError(
            f"{folder}: holds {foreign!r}, which this kit did not write there; name a new folder"
        )
    _check_place(place)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time works for `path`; UserError for the second."""
    from filelock import FileLock, Timeout

    place = Path(os.path.abspath(path))  # "." and ".." have no name of their own
    if not place.name:
        raise UserError(f"{path}: the root of the disk; name a folder in it")
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{path}: another process is writing it; wait for that one, or name another place"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        # A network folder without locks: what is written there still appears whole.
    try:
        yield
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place only if all went well.

    Only an empty folder, or one that the kit made, is replaced: `check_output_folder` says which,
    before and after. What `folder` links to is replaced, not the link.
    """
    check_output_folder(folder)
    folder = folder.resolve()
    with _temporary(folder) as temporary:
        temporary.mkdir()
        yield temporary
        for path in (path for path in temporary.rglob("*") if path.is_file()):
            _sync(path)
        mark_files(temporary)  # last: with its mark a folder is whole
        while True:
            old = _temporary_name(folder)
            with suppress(FileNotFoundError):
                folder.rename(old)
            try:
                if old.is_dir() and (foreign := _foreign_file(old)):  # out of reach of others now
                    raise UserError(f"{folder}: {foreign!r} has come there; name a new folder")
                temporary.rename(folder)
            except BaseException as error:
                if getattr(error, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST):
                    _remove(old)  # another process has put its own there in between
                    continue
                with suppress(FileNotFoundError):
                    old.rename(folder)
                raise
            _remove(old)
            break


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`; synced, it takes its place only if all went well."""
    check_output_file(path)
    with _temporary(path) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: never half a file."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_once(path: Path, content: bytes) -> None:
    """Write a whole file, unless there is one: of several processes the first one wins."""
    with _temporary(path) as temporary:
        temporary.write_bytes(content)
        _sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # no hard links on this file system
            temporary.replace(path)


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file, read once in a process unless its size or time of change differs."""
    found = path.stat()
    return _sha256_of(path.resolve(), found.st_size, found.st_mtime_ns)


def _content_sha256(content: dict) -> str:
    plain = json.loads(json.dumps(content))  # keys as a file has them
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def with_sha256(content: dict) -> dict:
    """JSON-ready content with the hash of all of it as `sha256`: damage on the disk shows."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return rest | {"sha256": _content_sha256(rest)}


def without_sha256(content: dict) -> dict:
    """What `with_sha256` was given; ValueError if it changed since. Without a hash it passes."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    if "sha256" in content and content["sha256"] != _content_sha256(rest):
        raise ValueError("its SHA-256 is another: it was changed or damaged")
    return rest


def content_key(value: Any) -> str:
    """Short hash of any JSON-ready value: what decides whether a record is current."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
