"""Masking: against binomial limits, enumerated draws and hand-worked cases."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from distilbert_kit.data.masking import mask_tokens, masking_probabilities
from distilbert_kit.errors import UserError

V, PAD, UNK, CLS, SEP, MASK = 50, 0, 1, 2, 3, 4
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
UNIFORM = masking_probabilities(torch.ones(V), 0.0, SPECIAL)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """CLS, random ordinary tokens, SEP, padding."""
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, V, (length,), generator=seeded(seed + row))
        ids[row, 0], ids[row, length - 1] = CLS, SEP
    return ids, (ids != PAD).long()


def mask(ids, attention_mask, weights=UNIFORM, seed=0, **options):
    return mask_tokens(
        ids, attention_mask, weights, mask_token_id=MASK, generator=seeded(seed), **options
    )


def within(count: int, n: int, p: float) -> bool:
    """Whether a binomial count is inside its central 1 - 1e-9."""
    low, high = stats.binom.interval(1 - 1e-9, n, p)
    return low <= count <= high


def test_probabilities_follow_the_formula():
    counts = np.array([7, 0, 1, 100, 10**9])
    weights = masking_probabilities(counts, 0.7, special_ids=[0])
    assert weights.tolist() == pytest.approx([0, 1, 1, 100**-0.7, 10**-6.3], rel=1e-6)
    assert masking_probabilities(counts, 0.0, [0]).tolist() == [0, 1, 1, 1, 1]
    assert torch.equal(masking_probabilities(counts, special_ids=[0]), weights)  # the original's


@pytest.mark.parametrize("proportions", [None, (0.5, 0.3, 0.2)])
def test_drawn_positions_are_masked_replaced_and_kept_in_proportion(proportions):
    ids, attention_mask = make_batch([400] * 100)
    options = {"proportions": proportions} if proportions else {}
    masked, labels = mask(ids, attention_mask, **options)
    drawn = labels != -100
    n = int(drawn.sum())
    assert torch.equal(labels[drawn], ids[drawn])
    assert torch.equal(masked[~drawn], ids[~drawn])
    became_mask = int((masked[drawn] == MASK).sum())
    changed = int(((masked != MASK) & (masked != ids) & drawn).sum())
    kept = n - became_mask - changed
    to_mask, to_random, to_same = proportions or (0.8, 0.1, 0.1)  # BERT's
    assert within(became_mask, n, to_mask)
    # One replacement in V - 5 equals the token it replaces.
    assert within(changed, n, to_random * (1 - 1 / (V - 5)))
    assert within(kept, n, to_same + to_random / (V - 5))


def test_replacements_are_uniform_over_ordinary_tokens():
    ids, attention_mask = make_batch([400] * 60)
    masked, labels = mask(ids, attention_mask, mask_probability=1.0, proportions=(0, 1, 0))
    replacements = torch.bincount(masked[labels != -100], minlength=V)
    assert replacements[list(SPECIAL)].sum() == 0
    assert stats.chisquare(replacements[5:].numpy()).pvalue > 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=8), st.integers(1, 100), st.integers(0, 99)
)
def test_draws_exactly_the_ceiling_of_what_can_be_masked(lengths, percent, seed):
    ids, attention_mask = make_batch(lengths, seed)
    _, labels = mask(ids, attention_mask, seed=seed, mask_probability=percent / 100)
    ordinary = int((ids >= 5).sum())
    expected = math.ceil(Fraction(percent, 100) * sum(lengths))
    assert int((labels != -100).sum()) == min(expected, ordinary)
    assert not (labels[ids < 5] != -100).any()


def test_special_tokens_as_mask_not_as_index_list():
    """REFERENCE 4.2: a 0/1 special-token mask used as indices masks SEP and padding."""
    ids, attention_mask = make_batch([30, 12, 5, 2])
    ids[0, 7] = UNK
    special = torch.isin(ids, torch.tensor(SPECIAL))
    kept = 0
    first_column = 0
    for seed in range(300):
        masked, labels = mask(ids, attention_mask, seed=seed)
        drawn = labels != -100
        assert torch.equal(masked[special], ids[special])
        assert not drawn[special].any()
        assert not torch.isin(masked[drawn & (masked != MASK)], torch.tensor(SPECIAL)).any()
        kept += int((drawn & (masked == ids)).sum())
        first_column += int(drawn[:, 1].sum())
    # The same defect also had no "keep" share, and never drew the positions it took for special.
    assert kept > 0
    assert first_column > 0


def test_draw_has_the_law_of_drawing_one_by_one_without_replacement():
    """How often each of 5 unlike tokens is among 2, against the sum over all ordered draws."""
    ids, shares = torch.arange(5, 10)[None], [1.0, 2.0, 4.0, 8.0, 16.0]
    weights = torch.zeros(V)
    weights[5:10] = torch.tensor(shares)
    draws = 4000
    ours = torch.zeros(5, dtype=int)
    for seed in range(draws):
        _, labels = mask(ids, torch.ones_like(ids), weights, seed, mask_probability=0.4)
        ours += labels[0] != -100
    expected = [0.0] * 5
    for first, second in itertools.permutations(range(5), 2):
        left = sum(shares) - shares[first]
        for drawn in (first, second):
            expected[drawn] += shares[first] / sum(shares) * shares[second] / left
    assert sum(expected) == pytest.approx(2)
    assert all(within(count, draws, p) for count, p in zip(ours.tolist(), expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_smoothing_favours_rare_tokens_by_the_power_law(smoothing):
    """One position of two is drawn: a token 1,000 times rarer wins with odds 1000**smoothing."""
    counts = torch.ones(V)
    counts[5], counts[6] = 1, 1000
    weights = masking_probabilities(counts, smoothing, SPECIAL)
    rows = 4000
    odds = 1000**smoothing
    rare = 0
    ids = torch.tensor([[5, 6]])
    for seed in range(rows):
        _, labels = mask(ids, torch.ones_like(ids), weights, seed, mask_probability=0.5)
        rare += int(labels[0, 0] != -100)
    assert within(rare, rows, odds / (1 + odds))


def test_generator_decides_everything():
    ids, attention_mask = make_batch([50, 20])
    first, again, other = (mask(ids, attention_mask, seed=s) for s in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_input_is_left_alone():
    ids, attention_mask = make_batch([50, 20])
    before = ids.clone()
    mask(ids, attention_mask)
    assert torch.equal(ids, before)


@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (0, 0)])
def test_empty_batch(shape):
    empty = torch.zeros(shape, dtype=torch.long)
    masked, labels = mask(empty, empty)
    assert masked.shape == labels.shape == shape


def test_nothing_can_be_masked():
    ids = torch.tensor([[CLS, UNK, SEP, PAD]])
    masked, labels = mask(ids, (ids != PAD).long())
    assert torch.equal(masked, ids)
    assert (labels == -100).all()
    masked, labels = mask(ids, (ids != PAD).long(), torch.zeros(V))
    assert torch.equal(masked, ids)


def test_nothing_is_drawn_at_probability_zero():
    ids, attention_mask = make_batch([10])
    masked, labels = mask(ids, attention_mask, mask_probability=0.0)
    assert torch.equal(masked, ids) and (labels == -100).all()


def test_ordinary_tokens_behind_the_attention_mask_are_padding():
    ids = torch.full((4, 20), 7)
    real = (torch.arange(20) < 5).expand(4, 20).long()
    masked, labels = mask(ids, real, mask_probability=1.0, proportions=(1.0, 0.0, 0.0))
    assert torch.equal(labels != -100, real.bool()) and torch.equal(masked == MASK, real.bool())


def test_the_only_allowed_token_is_every_replacement():
    weights = torch.zeros(V)
    weights[7] = 1.0
    ids = torch.full((2, 50), 7)
    options = {"mask_probability": 1.0, "proportions": (0.0, 1.0, 0.0)}
    masked, labels = mask(ids, torch.ones_like(ids), weights, **options)
    assert (labels == 7).all() and (masked == 7).all()


def test_bad_arguments_are_named():
    ids, attention_mask = make_batch([10])
    for proportions in ((0.8, 0.1, 0.2), (0.8, 0.1, 0.0), (1.2, -0.2, 0.0)):
        with pytest.raises(UserError, match="sum to 1"):
            mask(ids, attention_mask, proportions=proportions)
    for probability in (1.5, -0.1):
        with pytest.raises(UserError, match="mask probability"):
            mask(ids, attention_mask, mask_probability=probability)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    ids, attention_mask = (tensor.cuda() for tensor in make_batch([40, 20]))
    generator = torch.Generator("cuda").manual_seed(0)
    masked, labels = mask_tokens(
        ids, attention_mask, UNIFORM.cuda(), mask_token_id=MASK, generator=generator
    )
    assert masked.is_cuda
    assert int((labels != -100).sum()) == 9
