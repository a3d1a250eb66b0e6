"""The Wikipedia text of the study, from the article files that `data/sources.yaml` names.

The files are WikiExtractor's documents of the English Wikipedia of 2015, 30,729 articles in 400
files, `text/A?/wiki_??` of the repository jason-feng/wikiVisual. An article's title decides where
it goes, so every choice can be made again: of 1,000 buckets, the first 32 bits of the title's
SHA-256 modulo 1,000, buckets 0 to 4 are validation and 10 to 207 train; the rest is left out.
"""

import gzip
import hashlib
import html
import http.client
import re
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm.auto import tqdm

from ..errors import UserError
from ..foreign import BoundedTarInfo, read_text, read_whole

BUCKETS = {"train": range(10, 208), "validation": range(5)}  # of 1,000
SHORTEST = 200  # characters: shorter articles are stubs, disambiguations and dates
TIMEOUT = 60  # seconds without a byte
LARGEST = 1 << 26  # bytes of an article file; the true ones have a million
MOST = 1 << 32  # bytes of the unpacked archive; the true one has under a quarter

_ADVICE = "give the whole repository at the commit of data/sources.yaml"
_FILE = re.compile(r"(?:.*/)?text/A[A-Z]/wiki_\d\d")
_HEAD = re.compile(r'^<doc id="(\d{1,18})" url="[^"\n]*" title="([^\n]*)">\n[^\n]*\n', re.M)
_END = re.compile(r"^</doc>$", re.M)
_TAG = re.compile(r"<[^>\n]{0,200}>")  # longer ones are comparisons: "a < b … c > d"
_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError, http.client.HTTPException)


def build_articles(source: str | Path, files: int) -> dict[str, list[dict]]:
    """The rows (id, title, text) of both splits, by id.

    `source` is the https address of the repository's .tar.gz, which is read while it comes and not
    kept, or such an archive, or a folder that holds `text/`. Raises UserError when it cannot be
    read to its end, or does not hold `files` article files.
    """
    splits: dict[str, list[dict]] = {split: [] for split in BUCKETS}
    found = 0
    for content in tqdm(_read_files(source), "wikipedia", files, unit="file", mininterval=1):
        found += 1
        try:
            for split, row in _read_documents(content):
                splits[split].append(row)
        except ValueError as error:  # a character's number of thousands of digits
            raise UserError(f"{source}: not a file of articles ({error}); {_ADVICE}") from None
    if found != files:
        raise UserError(
            f"{source}: {found} article files text/A?/wiki_??, expected {files}; {_ADVICE}"
        )
    return {split: sorted(rows, key=lambda row: row["id"]) for split, rows in splits.items()}


def article_split(title: str) -> str | None:
    """The split of an article, by the hash of its title; None: left out."""
    bucket = int(hashlib.sha256(title.encode()).hexdigest()[:8], 16) % 1000
    return next((split for split, buckets in BUCKETS.items() if bucket in buckets), None)


def clean_article(text: str) -> str:
    """Text without entities, tags, white space at the ends of lines, and empty lines."""
    text = _TAG.sub("", html.unescape(text).replace("\xa0", " "))
    return "\n".join(line for line in map(str.strip, text.split("\n")) if line)


def _read_documents(content: str) -> Iterator[tuple[str, dict]]:
    """The chosen articles of a file; a document's first line is its title and goes."""
    *documents, _ = _END.split(content)  # before heads are looked for, each in its own document
    for document in documents:
        if not (head := _HEAD.search(document)):
            continue
        title = html.unescape(head[2])
        if split := article_split(title):
            text = clean_article(document[head.end() :])
            if len(text) >= SHORTEST:
                yield split, {"id": int(head[1]), "title": title, "text": text}


def _read_files(source: str | Path) -> Iterator[str]:
    """The article files of a folder or archive, as texts."""
    try:
        if Path(source).is_dir():
            for path in sorted(Path(source).glob("text/A?/wiki_??")):
                yield read_text(path, LARGEST)
            return
        with (
            _opened(source) as file,
            gzip.open(file) as inside,  # tarfile's own "r|gz" fails on a header that is cut short
            tarfile.open(fileobj=inside, mode="r|", tarinfo=BoundedTarInfo) as archive,
        ):
            for member in archive:
                if member.offset_data + member.size > MOST:
                    raise UserError(f"{source}: more than {MOST >> 30} GiB unpacked; {_ADVICE}")
                wanted = member.isfile() and _FILE.fullmatch(member.name)
                if wanted and (content := archive.extractfile(member)):
                    yield read_whole(content, f"{source}: {member.name}", LARGEST).decode()
    except FileNotFoundError:
        raise UserError(f"{source}: no such file or folder; mend --from") from None
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{source}: the server answers {error.code} {error.reason}; give a copy with --from"
        ) from None
    except _BROKEN as error:
        raise UserError(
            f"{source}: not read to its end ({type(error).__name__}: {error}); check the network "
            "and run the same command again, or give a copy with --from"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 ({error}); fetch it again") from None


@contextmanager
def _opened(source: str | Path) -> Iterator[IO[bytes]]:
    if str(source).startswith(("https://", "http://")):
        with urllib.request.urlopen(str(source), timeout=TIMEOUT) as response:
            yield response
    else:
        with Path(source).open("rb") as file:
            yield file
