"""Dynamic masking for the masked-language-model loss, drawn anew for every batch.

Shapes: B batch, L length, V vocabulary.
"""

from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..losses import IGNORE


def masking_probabilities(
    token_counts: Tensor | np.ndarray, smoothing: float = 0.7, special_ids: Iterable[int] = ()
) -> Tensor:
    """Relative masking probability [V] float32 of each token: max(count, 1) ** -smoothing.

    Rare tokens are masked more often than frequent ones, as in the original distillation code
    (XLM's smoothing, arXiv 1901.07291, section 3.3); `smoothing=0` treats all tokens alike, as
    BERT does. Special tokens have probability 0. The values do not sum to 1: only their ratios
    count.
    """
    counts = torch.as_tensor(token_counts, dtype=torch.float64)
    weights = counts.clamp(min=1).pow(-smoothing).float()
    weights[list(special_ids)] = 0.0
    return weights


def mask_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    token_weights: Tensor,
    mask_probability: float = 0.15,
    *,
    mask_token_id: int,
    generator: torch.Generator | None = None,
    proportions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> tuple[Tensor, Tensor]:
    """Return (masked input_ids, labels), both [B, L] int64; labels are -100 where not predicted.

    ceil(mask_probability x real tokens) positions are drawn in the batch without replacement,
    with probabilities proportional to `token_weights` [V] of the tokens there; all positions of
    positive weight if they are fewer. A drawn position becomes [MASK], becomes a token drawn
    uniformly from those of positive weight, or stays as it is, with probabilities `proportions`
    (80/10/10, arXiv 1810.04805, section 3.1). Padding (`attention_mask` [B, L] 0) and tokens of
    weight 0 are neither masked nor put in. The original draws replacements from the whole
    vocabulary, special tokens included.

    All tensors and the generator live on one device; nothing waits for the device. Raises
    UserError when the proportions or the probability are not such.
    """
    if not 0 <= mask_probability <= 1 or min(proportions) < 0 or abs(sum(proportions) - 1) > 1e-6:
        raise UserError(
            f"mask probability {mask_probability}, proportions {proportions}: the first lies in "
            "[0, 1], the others sum to 1"
        )
    shape, device = input_ids.shape, input_ids.device
    real = attention_mask.bool()
    weights = token_weights[input_ids] * real

    # Weighted draw without replacement: the largest w / Exp(1) (Efraimidis and Spirakis, 2006).
    noise = torch.empty(shape, device=device).exponential_(generator=generator)
    keys = (weights / noise).masked_fill(weights <= 0, -1.0).flatten()
    order = keys.argsort(descending=True, stable=True)
    # A fraction of integers, because 0.15 x n in floating point may land above a whole number.
    share = Fraction(mask_probability).limit_denominator(10**6)
    count = (real.sum() * share.numerator + share.denominator - 1) // share.denominator
    drawn = torch.empty_like(keys, dtype=torch.bool)
    drawn[order] = torch.arange(keys.numel(), device=device) < count
    drawn = drawn.view(shape) & (weights > 0)

    allowed = token_weights > 0
    candidates = allowed.to(torch.uint8).argsort(descending=True, stable=True)
    # 2**62 is so far above V that the remainder is uniform.
    number = torch.randint(2**62, shape, device=device, generator=generator)
    replacements = candidates[number % allowed.sum().clamp(min=1)]

    choice = torch.rand(shape, device=device, generator=generator)
    masked, randomised = proportions[0], proportions[0] + proportions[1]
    result = torch.where(drawn & (choice < masked), mask_token_id, input_ids)
    result = torch.where(drawn & (choice >= masked) & (choice < randomised), replacements, result)
    return result, torch.where(drawn, input_ids, IGNORE)
