"""Where the text of a corpus comes from: lines, parquet, the hub, or the libraries' docstrings."""

import ast
import glob
import hashlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby
from pathlib import Path
from typing import cast

from ..data.sources import DataUsed, sources
from ..errors import UserError, raise_if_disk_full
from ..files import file_sha256
from ..foreign import open_binary

# The embedded corpus: documentation of libraries that the requirements pin.
LIBRARIES = ("matplotlib", "numpy", "pandas", "scikit-learn", "scipy", "torch", "transformers")
LONGEST_LINE = 1 << 26  # bytes: some ten Bibles
_MARKUP = re.compile(r":[\w:]+:`~?([^`<]+?)(?: ?<[^`]*>)?`|``?([^`]+)``?|\*\*?([^*\s][^*]*)\*\*?")


@dataclass(frozen=True)
class Source:
    """Where text comes from: `identity` goes into the manifest, `read()` yields the documents.

    `used`: the split of data/sources.yaml that it is, checked.
    """

    identity: dict
    read: Callable[[], Iterable[str]]
    used: DataUsed | None = None


def split_source(spec: str) -> tuple[str, str]:
    """Kind and name of a source; UserError for an unknown kind, or one without a name."""
    kind, _, rest = spec.partition(":")
    if spec != "docs" and (kind not in ("data", "lines", "parquet", "hub") or not rest):
        raise UserError(
            f"source {spec!r}: use docs, data:DATASET/SPLIT, lines:FILE, parquet:FILE or "
            "hub:DATASET[:CONFIG][@COMMIT]"
        )
    return kind, rest


def source_files(spec: str) -> list[Path]:
    """The files of a `lines:` or `parquet:` source, sorted; none when nothing is there."""
    kind, _, rest = spec.partition(":")
    try:
        if Path(rest).is_file():
            return [Path(rest)]
        found = sorted(glob.glob(rest)) if kind == "parquet" else []
        return [path for path in map(Path, found) if path.is_file()]
    except (OSError, ValueError):  # too long, or with a null character
        return []


@cache  # every cell's key asks for them, and reading a package's metadata takes milliseconds
def docs_versions() -> dict[str, str]:
    """The version of each library whose docstrings are the embedded corpus."""
    versions = {}
    for library in LIBRARIES:
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"{library}: not installed; pip install -r requirements.txt") from None
        versions[library] = version.partition("+")[0]
    return versions


def open_source(spec: str, text_column: str = "text", encoding_errors: str = "strict") -> Source:
    """The source that `spec` names.

    `data:DATASET/SPLIT` (of data/sources.yaml, rows and hash checked), `lines:FILE` (a document a
    line, as the original's dump.txt), `parquet:FILE-OR-PATTERN`, `hub:DATASET[:CONFIG][@COMMIT]`
    (split train, streamed) or `docs` (docstrings of the installed libraries). Raises UserError for
    anything that is not there; so does reading, for a line that is not UTF-8 unless
    `encoding_errors` is "replace".
    """
    kind, rest = split_source(spec)
    if kind == "docs":
        return _docs_source()
    if kind == "data":
        return _listed_source(rest, text_column)
    if kind == "hub":
        name, _, commit = rest.partition("@")
        dataset, _, config = name.partition(":")
        return _hub_source(dataset, config, commit, text_column)
    paths = source_files(spec)
    if not paths:
        raise UserError(f"{rest}: no such file; mend --source")
    identity: dict = {
        "source": f"{kind}:{Path(rest).name}",
        "files": [[path.name, file_sha256(path)] for path in paths],
    }
    if kind == "lines":
        return Source(identity, lambda: _read_lines(paths[0], encoding_errors))
    _check_parquet(paths, text_column)
    return Source(identity | {"column": text_column}, lambda: _read_parquet(paths, text_column))


def _listed_source(name: str, column: str) -> Source:
    from ..data.tables import load_table  # imports datasets: other sources open at once

    dataset, _, split = name.rpartition("/")
    listed = sources().get(dataset, {}).get("columns", [column])
    table, used = load_table(dataset, split, listed)
    if column not in table.column_names:
        raise UserError(
            f"data:{name}: no column {column!r}; pass --text-column, one of "
            f"{', '.join(table.column_names)}"
        )
    texts = table.select_columns([column])
    return Source(
        {"source": f"data:{name}", "column": column, "rows": used.rows, "sha256": used.sha256},
        lambda: (text or "" for batch in texts.iter(256) for text in cast(dict, batch)[column]),
        used,
    )


def _read_lines(path: Path, encoding_errors: str) -> Iterator[str]:
    with open_binary(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MiB; give a "
                    "document a line"
                )
            try:
                yield line.decode("utf-8", encoding_errors).rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: line {number} is not UTF-8 at byte {error.start + 1}; mend it or "
                    "pass --encoding-errors replace"
                ) from None


def _check_parquet(paths: list[Path], column: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError, ValueError):
            raise UserError(f"{path}: not a parquet file; mend --source") from None
        if column not in schema.names:
            raise UserError(
                f"{path}: no column {column!r}; pass --text-column, one of "
                f"{', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {column!r} holds {kind}, not text; pass --text-column")


def _read_parquet(paths: list[Path], column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            # As a dictionary: what a few bytes say a million times is then in memory once.
            file = pq.ParquetFile(path, read_dictionary=[column])
            for batch in file.iter_batches(256, columns=[column]):
                for text in batch.column(0):
                    yield text.as_py() or ""
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path}: not a whole parquet file ({error}); fetch it again") from None


def _hub_source(dataset: str, config: str, commit: str, column: str) -> Source:
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        # The commit is pinned: a continued run must read the same rows.
        revision = commit or HfApi().dataset_info(dataset).sha
        rows = load_dataset(
            dataset, config or None, split="train", streaming=True, revision=revision
        )
        columns = list(next(iter(rows)))
    except Exception as error:
        raise_if_disk_full(error)
        raise UserError(
            f"hub:{dataset}: not opened ({type(error).__name__}: {str(error)[:120]}); check the "
            "name, the configuration and the network, or use --source docs"
        ) from None
    if column not in columns:
        raise UserError(
            f"hub:{dataset}: no column {column!r}; pass --text-column, one of {', '.join(columns)}"
        )
    identity = {"source": f"hub:{dataset}", "config": config, "revision": revision}
    return Source(identity | {"column": column}, lambda: _read_hub(dataset, rows, column))


def _read_hub(dataset: str, rows: Iterable[dict], column: str) -> Iterator[str]:
    number = 0
    try:
        for row in rows:
            number += 1
            yield row[column] or ""
    except Exception as error:
        raise_if_disk_full(error)
        raise UserError(
            f"hub:{dataset}: broken off after row {number:,} ({type(error).__name__}: "
            f"{str(error)[:120]}); run the same command again"
        ) from None


def _docs_source() -> Source:
    versions = docs_versions()
    files = [
        (path.as_posix(), Path(path.locate()))
        for library in versions
        for path in importlib.metadata.distribution(library).files or ()
        if path.suffix == ".py" and "tests" not in path.parts
    ]
    # Sorted by a hash of the name, so that a token limit takes from all libraries alike.
    files.sort(key=lambda item: hashlib.blake2b(item[0].encode()).digest())
    identity = {"source": "docs", "versions": versions}
    return Source(identity, lambda: chain.from_iterable(read_docs(path) for _, path in files))


def read_docs(path: Path) -> Iterator[str]:
    """The prose of each docstring of a Python file, which is parsed and never imported."""
    source = path.read_bytes() if path.exists() else b""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escape sequences in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join(_prose(ast.get_docstring(node) or ""))
            if text:
                yield text


def _prose(docstring: str) -> Iterator[str]:
    """Paragraphs of plain sentences: no signatures, tables, formulae or examples.

    A blank line or a change of indentation ends a paragraph.
    """
    for _, lines in groupby(
        docstring.splitlines(), lambda line: len(line) - len(line.lstrip()) if line.strip() else -1
    ):
        text = " ".join(_MARKUP.sub(lambda m: m[1] or m[2] or m[3], " ".join(lines)).split())
        plain = sum(c.isalpha() or c in " ,.;'" for c in text)
        if (
            len(text.split()) >= 8
            and text[0].isupper()
            and text[-1] in ".:!?"
            and plain >= 0.94 * len(text)
            and "----" not in text
        ):
            yield text
