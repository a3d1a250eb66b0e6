"""Which vocabulary a tokenizer has, and whether two of them are one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids a model needs for a tokenizer: one above its greatest, gaps counted too."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the vocabulary: one `id<TAB>token` line each, in the order of the ids."""
    items = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256("".join(f"{i}\t{t}\n" for i, t in items).encode()).hexdigest()


def check_same_vocabulary(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, where: str
) -> None:
    """Refuse a teacher that would read a student's token ids as other words; `where` names it."""
    if vocabulary_sha256(teacher) != vocabulary_sha256(student):
        raise UserError(
            f"{where}: the teacher's vocabulary ({len(teacher):,} tokens) is not the student's "
            f"({len(student):,}); use models of one vocabulary"
        )
