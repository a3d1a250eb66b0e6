"""Model shapes: one configuration class for DistilBERT, for BERT and for MPNet."""

import math
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UserError

# Which models may be teacher and student of each other: those of one family.
FAMILIES = {"bert": "Bert", "distilbert": "Bert", "mpnet": "MPNet"}

# transformers' names, and torch's module and options for each.
ACTIVATIONS = {
    "gelu": ("GELU", {}),
    "gelu_new": ("GELU", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("GELU", {"approximate": "tanh"}),
    "relu": ("ReLU", {}),
    "silu": ("SiLU", {}),
    "swish": ("SiLU", {}),
}

# The least and the most of each size: far beyond any model of these families.
_SIZES = {
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (3, 1 << 16),  # MPNet's begin at 2
    "hidden_size": (1, 1 << 16),
    "num_layers": (1, 128),
    "num_heads": (1, 1 << 10),
    "intermediate_size": (1, 1 << 18),
    "type_vocab_size": (0, 1 << 10),
}

_PROBABILITIES = ("dropout", "attention_dropout", "classifier_dropout", "qa_dropout")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an encoder. `model_type` "bert" adds token types and a pooler to "distilbert".

    "mpnet" (arXiv 2004.09297) adds a bias for the distance of two tokens, shared by all layers, and
    a pooler; it has no token types, and its positions begin at 2.
    The defaults are DistilBERT-base (arXiv 1910.01108, section 3). Dropouts are probabilities;
    `classifier_dropout` stands before the classification head, `qa_dropout` before the span head.
    """

    model_type: str = "distilbert"
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    hidden_size: int = 768
    num_layers: int = 6
    num_heads: int = 12
    intermediate_size: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.2
    qa_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    type_vocab_size: int = 0
    pad_token_id: int = 0
    initializer_range: float = 0.02
    activation: str = "gelu"

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise UserError(f"model_type {self.model_type!r}: use {', '.join(FAMILIES)}")
        for name, (least, most) in _SIZES.items():
            size = getattr(self, name)
            if type(size) is not int or not least <= size <= most:
                raise UserError(f"{name} {size!r}: give a whole number from {least} to {most:,}")
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(
                f"pad_token_id {self.pad_token_id!r} is no token of the vocabulary; give one from "
                f"0 to {self.vocab_size - 1:,}"
            )
        for name in _PROBABILITIES:
            share = getattr(self, name)
            # Nearer to 1, nothing is kept to 16 bits: model.Dropout would divide by 0.
            if not isinstance(share, int | float) or not 0 <= share <= 0.99:
                raise UserError(f"{name} {share!r}: give a probability from 0 to 0.99")
        for name in ("layer_norm_eps", "initializer_range"):
            size = getattr(self, name)
            if not isinstance(size, int | float) or not (size >= 0 and math.isfinite(size)):
                raise UserError(f"{name} {size!r}: give a number from 0 on")
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation {self.activation!r} is not supported: use {', '.join(ACTIVATIONS)}"
            )
        # What transformers' config.json of the type cannot say, and would be lost there.
        if self.model_type != "bert" and self.type_vocab_size:
            raise UserError(f"type_vocab_size: {self.model_type} has no token types; use 0 or bert")
        if self.model_type == "distilbert" and self.layer_norm_eps != 1e-12:
            raise UserError(f"layer_norm_eps {self.layer_norm_eps!r}: distilbert's is 1e-12")
        # transformers counts MPNet's positions over the tokens that are not 1, whatever pads.
        if self.model_type == "mpnet" and self.pad_token_id != 1:
            raise UserError(f"pad_token_id {self.pad_token_id} is not supported: mpnet's is 1")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: "
                "change one of them"
            )

    @property
    def family(self) -> str:
        """Models of one family have the same blocks: a student can be cut from its teacher."""
        return FAMILIES[self.model_type]

    @property
    def first_position(self) -> int:
        """The row of the position embeddings that the first token reads."""
        return 2 if self.model_type == "mpnet" else 0  # after the padding's, as transformers

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_position_embeddings - self.first_position

    def text_length(self, where: str, given: int | None, usual: int = 512) -> int:
        """Tokens of a text: those given, or else the usual number and no more than it takes.

        Raises UserError, which calls the model `where`, if more are given than it takes.
        """
        if given is None:
            return min(usual, self.max_length)
        if given > self.max_length:
            raise UserError(
                f"{where}: takes at most {self.max_length} tokens; lower max_length {given}"
            )
        return given


_BERT = ModelConfig(
    model_type="bert", num_layers=12, classifier_dropout=0.1, qa_dropout=0.0, type_vocab_size=2
)

PRESETS = {
    "distilbert-base-uncased": ModelConfig(),
    "bert-base-uncased": _BERT,
    "MiniLM-L6": replace(_BERT, hidden_size=384, intermediate_size=1536, num_layers=6),
    "DistilMiniLM-L3": replace(
        ModelConfig(), hidden_size=384, intermediate_size=1536, num_layers=3
    ),
    "mpnet-base": ModelConfig(
        model_type="mpnet",
        vocab_size=30527,
        max_position_embeddings=514,
        num_layers=12,
        classifier_dropout=0.1,
        qa_dropout=0.0,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    ),
    # The depths of the paper's pair, for dry runs.
    "bert-tiny": replace(_BERT, hidden_size=16, intermediate_size=32, num_heads=2),
    "tiny": replace(
        ModelConfig(), hidden_size=32, intermediate_size=128, num_layers=2, num_heads=4
    ),
}


def create_model_config(name: str, **changes: Any) -> ModelConfig:
    """Return the preset `name` with `changes` applied.

    Raises UserError when there is no such preset or field.
    """
    if name not in PRESETS:
        raise UserError(f"no model preset {name!r}: choose from {', '.join(PRESETS)}")
    try:
        return replace(PRESETS[name], **changes)
    except TypeError as error:
        raise UserError(f"preset {name!r}: {error}") from None
