"""Hugging Face names and configurations of BERT, DistilBERT and MPNet, in and out."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, DistilBertConfig, MPNetConfig, PreTrainedConfig

from ..errors import UserError
from ..foreign import read_json
from .config import ModelConfig

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
_ENCODER["mpnet"] = _ENCODER["bert"] | {
    "relative_bias": "encoder.relative_attention_bias",
    r"blocks.(\d+).attention.output": r"encoder.layer.\1.attention.attn.o",
    r"blocks.(\d+).attention_norm": r"encoder.layer.\1.attention.LayerNorm",
}

_QKV = {
    "distilbert": [f"transformer.layer.{{}}.attention.{x}_lin" for x in "qkv"],
    "bert": [f"encoder.layer.{{}}.attention.self.{x}" for x in ("query", "key", "value")],
    "mpnet": [f"encoder.layer.{{}}.attention.attn.{x}" for x in "qkv"],
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
    "mpnet": {
        "transform": "lm_head.dense",
        "transform_norm": "lm_head.layer_norm",
        "decoder_bias": "lm_head.bias",
        "pre_classifier": "classifier.dense",
        "classifier": "classifier.out_proj",
    },
}

# The configurations of transformers, and our names -> theirs in them.
_SAME_NAMES = {
    name: name
    for name in ("vocab_size", "max_position_embeddings", "pad_token_id", "initializer_range")
}
_MPNET_NAMES = _SAME_NAMES | {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}
_BERT_NAMES = _MPNET_NAMES | {
    "classifier_dropout": "classifier_dropout",
    "type_vocab_size": "type_vocab_size",
}
_DISTILBERT_NAMES = _SAME_NAMES | {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
    "qa_dropout": "qa_dropout",
    "activation": "activation",
}
_CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, str]]] = {
    "distilbert": (DistilBertConfig, _DISTILBERT_NAMES),
    "bert": (BertConfig, _BERT_NAMES),
    "mpnet": (MPNetConfig, _MPNET_NAMES),
}

# The decoder's weight, where a checkpoint has one apart from the word embeddings.
_DECODERS = {
    "distilbert": "vocab_projector.weight",
    "bert": "cls.predictions.decoder.weight",
    "mpnet": "lm_head.decoder.weight",
}

# Keys of a `config.json` that ask for what these encoders do not do, and what they may say.
_REFUSED = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None, {}),
    "auto_map": (None, {}),
    "relative_attention_num_buckets": (None, 32),
}

MOST_LABELS = 100_000

# What a head is for, in the hub's words, by the ending of the architecture's name.
_HEAD_TASKS = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
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
            found = [tensors[part] for part in parts]
            state[name] = torch.cat(found) if len(found) > 1 else found[0]  # no copy
    return state


def has_own_decoder(tensors: dict[str, Tensor], model_type: str) -> bool:
    """Whether a checkpoint has a masked-LM decoder that is not its word embeddings."""
    decoder = tensors.get(_DECODERS[model_type])
    words = tensors.get(f"{model_type}.embeddings.word_embeddings.weight")
    return decoder is not None and not (words is not None and torch.equal(decoder, words))


def plain_label(label: str) -> str:
    """A class name as they are compared: POSITIVE, so-so and so_so are spelled in many ways."""
    return label.lower().replace("-", "_").replace(" ", "_")


class HubConfig(NamedTuple):
    """What a `config.json` says: the shape, the class names and their kind, a tied decoder."""

    shape: ModelConfig
    labels: tuple[str, ...]
    multi_label: bool
    tied: bool


class HubModel(nn.Module):
    """A model of the shape and, with a classifier, the classes that its `config.json` says."""

    hub_class = "Model"  # the end of its class's name in transformers
    config: ModelConfig
    num_labels: int
    labels: tuple[str, ...]
    multi_label: bool


def read_config(folder: Path) -> HubConfig:
    """Shape and labels of a Hugging Face `config.json`.

    Raises UserError when it is missing or damaged, and when it asks for what the models of this
    kit do not do: nothing in it is ignored that would change a number.
    """
    path = folder / "config.json"
    hub = read_json(path, "give a checkpoint folder")
    if wrong := [key for key, allowed in _REFUSED.items() if hub.get(key) not in allowed]:
        raise UserError(
            f"{path}: {wrong[0]} {json.dumps(hub[wrong[0]])[:100]} is not supported; "
            "give a plain BERT, DistilBERT or MPNet"
        )
    try:
        _check_labels(hub)
        shape, parsed = _read_shape(hub)
        names = cast(dict[int, str], parsed.id2label)  # transformers fills it in
        labels = tuple(names[i] for i in sorted(names))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # transformers' checks have no common class
        raise UserError(
            f"{path}: not a configuration ({' '.join(str(error).split())}); write it again"
        ) from None
    if len(set(labels)) < len(labels):
        raise UserError(f"{path}: id2label names a class twice; give every class its own name")
    if hub.get("problem_type") == "regression" and len(labels) > 1:
        raise UserError(f"{path}: a regression with {len(labels)} outputs is not supported; use 1")
    multi_label = hub.get("problem_type") == "multi_label_classification"
    return HubConfig(shape, labels, multi_label, hub.get("tie_word_embeddings", True))


def read_architecture(folder: Path) -> tuple[str, str]:
    """The architecture that a `config.json` names, and the task of its head; "" where none is."""
    inner = [path.parent.name for path in sorted(folder.glob("*/config.json"))[:5]]
    advice = "give a saved model" + f": {' or '.join(inner)} in it" * bool(inner)
    names = read_json(folder / "config.json", advice).get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    return name, next((task for end, task in _HEAD_TASKS.items() if name.endswith(end)), "")


def _check_labels(hub: dict) -> None:
    """Refuse class names that are no texts, and numbers of classes that transformers counts out."""
    count, names = hub.get("num_labels"), hub.get("id2label")
    if count is not None and count not in range(1, MOST_LABELS + 1):
        raise UserError(f"num_labels {count!r}: use 1 to {MOST_LABELS:,}")
    if names is None:
        return
    if not isinstance(names, dict) or not 1 <= len(names) <= MOST_LABELS:
        raise UserError(f"id2label: give 1 to {MOST_LABELS:,} classes, their names by number")
    for name in names.values():
        if not isinstance(name, str):
            raise UserError(f"id2label: {name!r} is no name of a class; write a text")
        name.encode()  # half of a character is none


def _read_shape(hub: dict) -> tuple[ModelConfig, PreTrainedConfig]:
    """The shape in a parsed `config.json`, and what transformers makes of the whole of it."""
    model_type = hub.get("model_type")
    if model_type not in _CONFIGS:
        raise UserError(f"model_type {model_type!r} is none of {', '.join(_CONFIGS)}")
    kind, names = _CONFIGS[model_type]
    parsed = kind(**hub)
    fields = {ours: getattr(parsed, theirs) for ours, theirs in names.items()}
    fields["pad_token_id"] = fields["pad_token_id"] or 0
    if model_type != "distilbert":
        # transformers' configurations lack these, so `hub_config` adds them where they differ.
        fields["qa_dropout"] = hub.get("qa_dropout", 0.0)
        # BERT's may be None: that of the layers.
        if (share := hub.get("classifier_dropout")) is None:
            share = fields["dropout"]
        fields["classifier_dropout"] = share
    return ModelConfig(model_type=model_type, **fields), parsed


def hub_config(model: HubModel) -> PreTrainedConfig:
    """transformers' configuration of one of our models, with its label names."""
    kind, names = _CONFIGS[model.config.model_type]
    labels = dict(enumerate(getattr(model, "labels", ("LABEL_0", "LABEL_1"))))
    content: dict = {theirs: getattr(model.config, ours) for ours, theirs in names.items()}
    for name, usual in {"qa_dropout": 0.0, "classifier_dropout": model.config.dropout}.items():
        if name not in names and getattr(model.config, name) != usual:
            content[name] = getattr(model.config, name)
    content |= {"id2label": labels, "label2id": {label: i for i, label in labels.items()}}
    if getattr(model, "num_labels", 0) == 1:
        content["problem_type"] = "regression"
    if getattr(model, "multi_label", False):
        content["problem_type"] = "multi_label_classification"
    architecture = kind.__name__.removesuffix("Config") + model.hub_class
    return kind(architectures=[architecture], **content)
