"""What a recipe reads from outside, by content: text files, weights folders, names on the hub.

results/<recipe>/pins.json keeps what was read. A name on the hub stands for whatever is newest:
`open_recipe` pins it to a commit, so that every cell, on every day, reads the same; take a newer
one by deleting its line. Of files that are not here, as in a clone, their pins tell the content.
Light (no torch): the experiment graph reads it.
"""

import os
from pathlib import Path
from typing import cast

from ..corpus.text_sources import docs_versions, source_files, split_source
from ..data.tasks import Task, is_embedded
from ..errors import UserError
from ..files import cached_sha256, content_key, write_json
from ..foreign import read_json
from ..models.config import ModelConfig
from ..models.packaged import KNOWN_SHA256, is_hub_name, is_path
from .recipes import Recipe, load_recipe
from .records import Input, Scale

# What decides a checkpoint; a folder may hold records, cards and caches beside it.
_WEIGHTS = (
    "config.json",
    "model*.safetensors*",
    "pytorch_model*.bin*",
    "tokenizer*.json",
    "*_tokens*.json",
    "vocab.txt",
)


def public_name(weights: str) -> str:
    """Given weights as a record names them: of a folder only its own name."""
    folder = is_path(weights) or Path(weights).is_dir()
    return Path(os.path.abspath(weights)).name if folder else weights


def public_source(source: str) -> str:
    """A source of text as a record names it: of files only their own names."""
    kind, _, rest = source.partition(":")
    return f"{kind}:{Path(rest).name}" if kind in ("lines", "parquet") else source


def _pins_file(recipe: Recipe) -> Path:
    return recipe.folder / "pins.json"


def _pins(recipe: Recipe) -> dict[str, str]:
    path, advice = _pins_file(recipe), "delete it: the next run writes it again"
    pins = read_json(path, advice) if path.exists() else {}
    if not all(isinstance(content, str) for content in pins.values()):
        raise UserError(f"{path}: not names with their content; {advice}")
    return pins


def _files_content(paths: list[Path]) -> str | None:
    """One hash for one file; for several that of their names and hashes."""
    if len(paths) == 1:
        return f"sha256:{cached_sha256(paths[0])}"
    return f"sha256:{content_key([[p.name, cached_sha256(p)] for p in paths])}" if paths else None


def _weights_content(folder: Path) -> str | None:
    return _files_content(sorted({path for name in _WEIGHTS for path in folder.glob(name)}))


def checkpoint_input(weights: str, folder: Path) -> Input:
    """Weights of a command line and their content, which is in `folder`."""
    return Input(name=f"weights:{public_name(weights)}", content=_weights_content(folder))


def given_scale(shape: ModelConfig, task: Task) -> Scale:
    """The scale of a given model on a task: "paper" if it is no smaller than DistilBERT."""
    if is_embedded(task.dataset):
        return "embedded"
    least = ModelConfig()
    small = shape.num_layers < least.num_layers or shape.hidden_size < least.hidden_size
    return "reduced" if small else "paper"


def given_provenance(weights: str, folder: Path, shape: ModelConfig, task: Task) -> dict:
    """Arguments for `records.recording` of weights of a command line, in `folder`, on a task."""
    return {
        "cell": {"checkpoint": public_name(weights), "task": task.name},
        "scale": given_scale(shape, task),
        "recipe": "none",
        "inputs": [checkpoint_input(weights, folder)],
    }


def weights_input(recipe: Recipe, weights: str) -> Input:
    """Given weights and their content."""
    given, _, commit = weights.partition("@")
    name = f"weights:{public_name(given)}"
    if weights in KNOWN_SHA256:
        content = f"sha256:{KNOWN_SHA256[weights]}"
    elif is_hub_name(weights):
        content = f"commit:{commit}" if commit else None
    else:
        content = _weights_content(Path(weights))
    return Input(name=name, content=content or _pins(recipe).get(name))


def source_input(recipe: Recipe, source: str) -> Input | None:
    """A source of text and its content; None for a listed data set, which has a hash already."""
    (kind, _), name = split_source(source), public_source(source)
    if kind == "data":
        return None
    if source == "docs":
        content = "versions:" + ", ".join(f"{n} {v}" for n, v in docs_versions().items())
    elif kind == "hub":
        name, _, commit = name.partition("@")
        content = f"commit:{commit}" if commit else None
    else:
        content = _files_content(source_files(source))
    return Input(name=name, content=content or _pins(recipe).get(name))


def _newest_commit(kind: str, name: str) -> str:
    """The commit of a hub repository's main branch; offline that of the newest local copy."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        return cast(str, HfApi().repo_info(name, repo_type=kind).sha)
    except Exception as error:
        try:
            return Path(snapshot_download(name, repo_type=kind, local_files_only=True)).name
        except Exception:
            raise UserError(
                f"{name}: not found on the hub ({type(error).__name__}) nor here; check the name "
                "and the network"
            ) from None


def open_recipe(name_or_file: str | Path) -> Recipe:
    """A recipe to be run: `load_recipe`, and what it reads from outside pinned."""
    recipe = load_recipe(name_or_file)
    known = _pins(recipe)
    given = {spec.weights for spec in recipe.models.values() if spec.weights}
    given |= {recipe.training_speed.weights} if recipe.training_speed else set()
    seen = {}
    for weights in sorted(given - KNOWN_SHA256.keys()):
        if Path(weights).is_dir() and not is_path(weights):
            raise UserError(
                f"{recipe.file.name}: weights {weights!r} is a folder here, and a name on the hub "
                f"where that is missing; write ./{weights}"
            )
        found = weights_input(recipe, weights)
        if is_hub_name(weights) and "@" in weights:  # its commit is its own
            continue
        seen[found.name] = found.content
        if found.content is None and is_hub_name(weights):
            seen[found.name] = f"commit:{_newest_commit('model', weights)}"
    sources = list(recipe.corpus.source) if recipe.corpus else []
    for source in sources + ([recipe.corpus_speed.source] if recipe.corpus_speed else []):
        found = source_input(recipe, source)
        if found is None or source == "docs" or (source.startswith("hub:") and "@" in source):
            continue
        seen[found.name] = found.content
        if found.content is None and source.startswith("hub:"):
            seen[found.name] = f"commit:{_newest_commit('dataset', source.split(':')[1])}"
    pins = known | {name: content for name, content in seen.items() if content}
    if pins != known:
        write_json(_pins_file(recipe), pins)
    return recipe


def _at_commit(name: str, given: Input) -> str:
    commit = (given.content or "").removeprefix("commit:")
    return f"{name}@{commit}" if commit and "@" not in name else name


def pinned_weights(recipe: Recipe, weights: str) -> str:
    """What `from_pretrained` reads: of a name on the hub, at the commit of the recipe."""
    return _at_commit(weights, weights_input(recipe, weights)) if is_hub_name(weights) else weights


def pinned_source(recipe: Recipe, source: str) -> str:
    """What `open_source` reads: of a data set on the hub, at the commit of the recipe."""
    given = source_input(recipe, source) if source.startswith("hub:") else None
    return _at_commit(source, given) if given else source
