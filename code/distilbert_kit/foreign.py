"""Files from elsewhere, read within bounds: JSON, YAML, what gzip compressed, entries of archives.

A few kilobytes may unpack to gigabytes: each reader says how much it takes, and more is refused.
"""

import gzip
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError

# The largest of what is read whole, in bytes as it comes out: a few kilobytes may hold gigabytes.
MOST_BYTES = 1 << 29
MOST_JSON = 1 << 26
MOST_YAML = 1 << 17
MOST_NODES = 10_000  # of a YAML file, aliases counted as what they stand for
MOST_LEVELS = 32  # of a YAML file: for every word the loader looks at all that are open

Readable = IO[bytes] | io.BufferedIOBase  # gzip's and zipfile's files are the latter


def parse_json(text: str | bytes) -> Any:
    """`json.loads`; ValueError also for what is nested too deep for it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def kind_of(path: Path) -> str:
    """The ending that tells a file's format, in small letters: ".csv" of texts.CSV.gz too."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_json(path: Path, advice: str = "write or fetch it again") -> dict:
    """The JSON object in a file; UserError, with `advice`, when it holds none of 64 MiB at most."""
    try:
        content = parse_json(read_text(path, MOST_JSON))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {advice}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); {advice}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {advice}")
    return content


def read_yaml(path: Path) -> Any:
    """What a YAML file says, safely loaded: plain values, no number beyond 64 bits.

    Raises UserError for what is not so, a key that is given twice, files above 128 KiB, of over
    32 levels or of over 10,000 values, where each alias counts as all that it stands for.
    """
    try:
        loader = _yaml_loader(read_text(path, MOST_YAML))
        try:
            node = loader.get_single_node()
            if node is not None and _count_nodes(node, {}) > MOST_NODES:
                raise ValueError(f"over {MOST_NODES:,} values; aliases count as what they are of")
            content = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
        _check_plain(content)
        return content
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}; save it so") from None
    except RecursionError:
        raise UserError(f"{path}: not YAML (nested too deep); mend it") from None
    except (OSError, UserError):
        raise
    except Exception as error:  # values that do not fit their tags: errors of many kinds
        raise UserError(f"{path}: not YAML ({error}); mend it") from None


def _yaml_loader(text: str) -> Any:
    """PyYAML's safe loader, which stops at `MOST_LEVELS` and `MOST_NODES`."""
    import yaml

    class Loader(yaml.SafeLoader):
        levels = nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nodes += 1
            if self.levels == MOST_LEVELS or self.nodes > MOST_NODES:
                raise ValueError(f"over {MOST_LEVELS} levels or {MOST_NODES:,} values")
            self.levels += 1
            node = super().compose_node(parent, index)
            self.levels -= 1
            return node

    return Loader(text)


def _count_nodes(node: Any, known: dict[Any, int | None]) -> int:
    """The values below a node of YAML, those of an alias as often as it stands."""
    if node in known:
        if (count := known[node]) is None:
            raise ValueError("an alias within what it stands for")
        return count
    known[node] = None
    inner = []
    if node.id == "mapping":
        keys = Counter((key.tag, key.value) for key, _ in node.value if key.id == "scalar")
        if repeated := next((key for key, count in keys.items() if count > 1), None):
            raise ValueError(f"the key {repeated[1]!r} is given twice")
        inner = [part for pair in node.value for part in pair]
    elif node.id == "sequence":
        inner = node.value
    known[node] = count = 1 + sum(_count_nodes(part, known) for part in inner)
    return count


def _check_plain(content: Any) -> None:
    """Refuse what JSON, which every result is written in, cannot say."""
    if isinstance(content, dict):
        if wrong := [key for key in content if not isinstance(key, str)]:
            raise ValueError(f"the key {wrong[0]!r} is no text: put it in quotes")
        content = [*content, *content.values()]
    if isinstance(content, list):
        for part in content:
            _check_plain(part)
    elif isinstance(content, str):
        content.encode()
    elif isinstance(content, int) and abs(content) >= 1 << 63:
        raise ValueError("a number of more than 64 bits")
    elif not isinstance(content, int | float | None):
        raise ValueError(f"{content!r} is neither text nor number: put it in quotes")


@contextmanager
def open_binary(path: Path) -> Iterator[Readable]:
    """A file for reading; what gzip compressed, told by its first bytes, comes out as it was.

    Raises UserError for a compressed file that is cut short or damaged.
    """
    with path.open("rb") as file:
        if not (file.seekable() and file.peek(2)[:2] == b"\x1f\x8b"):
            yield file
            return
        try:
            with gzip.open(file) as inside:
                yield inside
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: not a whole gzip file ({error}); fetch it again") from None


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The whole of a file, decompressed if gzip compressed it; UserError above `most` bytes."""
    with open_binary(path) as file:
        return read_whole(file, str(path), most)


def read_whole(file: Readable, where: str, most: int = MOST_BYTES) -> bytes:
    """All that comes out of an open file; UserError, and nothing kept, above `most` bytes."""
    content = io.BytesIO()
    while block := file.read(1 << 20):
        if content.tell() + len(block) > most:
            raise UserError(f"{where}: more than {most >> 10:,} KiB; give a smaller one, or parts")
        content.write(block)
    return content.getvalue()


def read_text(path: Path, most: int) -> str:
    """The text of a regular file in UTF-8: neither a folder nor a pipe nor a device is opened."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; put one there")
    return read_bytes(path, most).decode("utf-8")


class BoundedTarInfo(tarfile.TarInfo):
    """An entry of a tar: its long name and attributes, which are read whole, have a mebibyte."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """What tarfile calls after each header; that of newer Pythons calls no frombuf."""
        if not self.isreg() and self.size > 1 << 20:
            raise tarfile.ReadError(f"{self.name}: an entry's header of {self.size:,} bytes")
        return super()._proc_member(archive)  # pyright: ignore[reportAttributeAccessIssue]
