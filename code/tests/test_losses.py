"""The losses against torch's own modules."""

import pytest
import torch
import torch.nn.functional as F
from plain_loss import triple_loss_plain
from torch import nn

from distilbert_kit.losses import (
    classification_loss_sum,
    compute_classification_loss,
    compute_mlm_loss,
    cosine_loss,
    distillation_cross_entropy,
    masked_lm_loss,
    response_distillation,
    span_distillation,
    span_loss,
)


def test_distillation_equals_batchmean_on_selected_rows():
    student, teacher = torch.randn(11, 29), torch.randn(11, 29)
    kl = nn.KLDivLoss(reduction="batchmean")
    expected = kl(F.log_softmax(student / 3, -1), F.softmax(teacher / 3, -1)) * 9
    torch.testing.assert_close(distillation_cross_entropy(student, teacher, 3) / 11, expected)


def test_distillation_refuses_sequences_where_batchmean_is_wrong():
    """A peer's error: `batchmean` of [B, L, V] is L times the mean over tokens, with padding."""
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    real = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    with pytest.raises(ValueError, match="non-padding"):
        distillation_cross_entropy(student, teacher, 2.0)
    wrong = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(student, -1), F.softmax(teacher, -1))
    tokens = distillation_cross_entropy(student.flatten(0, 1), teacher.flatten(0, 1), 1.0) / 10
    torch.testing.assert_close(wrong, 5 * tokens)
    ours = distillation_cross_entropy(student[real], teacher[real], 1.0) / 6
    by_hand = sum(
        float((p.softmax(0) * (p.softmax(0).log() - q.softmax(0).log())).sum())
        for q, p in zip(student[real], teacher[real])
    )
    assert float(ours) == pytest.approx(by_hand / 6, rel=1e-5)


def test_masked_lm_equals_torch():
    logits, labels = torch.randn(2, 6, 19), torch.randint(19, (2, 6))
    labels[:, ::2] = -100
    expected = nn.CrossEntropyLoss()(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(compute_mlm_loss(logits, labels), expected)
    rows = (logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(masked_lm_loss(*rows) / 6, expected)
    labels[:, 1:] = -100
    labels[0, 0] = 3  # one target alone
    torch.testing.assert_close(compute_mlm_loss(logits, labels), -logits[0, 0].log_softmax(0)[3])
    nothing = compute_mlm_loss(logits.requires_grad_(), torch.full_like(labels, -100))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, [logits])[0].any()


def test_cosine_equals_torch_and_is_over_last_layer_tokens():
    """A peer's error: cosine over pooled or all-layer states instead of last-layer tokens."""
    student, teacher = torch.randn(4, 3, 5, 8), torch.randn(4, 3, 5, 8)  # layer, batch, token, size
    real = torch.tensor([5, 2, 4])[:, None] > torch.arange(5)
    rows = (student[-1][real], teacher[-1][real])
    expected = nn.CosineEmbeddingLoss()(*rows, torch.ones(11))
    torch.testing.assert_close(cosine_loss(*rows) / 11, expected)
    for wrong in ((student, teacher), (student[-1], teacher[-1])):
        with pytest.raises(ValueError, match="non-padding"):
            cosine_loss(*wrong)
    pooled = [
        (x[-1] * real[..., None]).sum(1) / real.sum(1, keepdim=True) for x in (student, teacher)
    ]
    assert float(cosine_loss(*pooled) / 3) != pytest.approx(float(expected), rel=0.05)
    assert float(cosine_loss(rows[0], 3 * rows[0])) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda student, teacher: distillation_cross_entropy(student, teacher, 2.0),
        lambda student, teacher: response_distillation(student, teacher, 2.0),
        lambda student, teacher: response_distillation(student[:, :1], teacher[:, :1], 2.0),
        cosine_loss,
    ],
)
def test_rows_that_do_not_pair_are_never_broadcast(loss):
    with pytest.raises(ValueError, match="alike"):
        loss(torch.randn(4, 3), torch.randn(1, 3))


def test_low_precision_inputs_are_computed_in_fp32():
    student, teacher = torch.randn(6, 500).bfloat16(), torch.randn(6, 500).bfloat16()
    labels = torch.randint(500, (6,))
    for loss, arguments in (
        (distillation_cross_entropy, (student, teacher, 2.0)),
        (masked_lm_loss, (student, labels)),
        (cosine_loss, (student, teacher)),
        (response_distillation, (student, teacher, 2.0)),
        (classification_loss_sum, (student, labels)),
        (span_loss, (student, teacher, labels, labels)),
    ):
        wide = [x.float() if x is student or x is teacher else x for x in arguments]
        assert loss(*arguments).dtype == torch.float32
        torch.testing.assert_close(loss(*arguments), loss(*wide), rtol=0, atol=0)
    scores, one, other = labels.double(), student[:, :1], teacher[:, :1]
    for loss in (classification_loss_sum(one, scores), response_distillation(one, other, 2.0)):
        assert loss.dtype == torch.float32
    expected = (one[:, 0].float() - scores).square().sum()
    found = classification_loss_sum(one, scores)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, check_dtype=False)
    student, teacher = student.half(), teacher.half()  # whose largest number is 65,504
    spans = [(student, teacher), (teacher, student), torch.ones(6, 500).tril(200)]
    wide = [tuple(x.float() for x in side) for side in spans[:2]]
    torch.testing.assert_close(
        span_distillation(*spans, 2.0), span_distillation(*wide, spans[2], 2.0), rtol=0, atol=0
    )


def test_plain_triple_loss_is_the_weighted_sum_of_its_terms():
    student, teacher, labels = (
        torch.randn(7, 9),
        torch.randn(7, 9),
        torch.tensor([3] * 4 + [-100] * 3),
    )
    loss, terms = triple_loss_plain(
        student, teacher, student, teacher, labels, 2.0, 5 / 7, 2 / 4, 1 / 7
    )
    assert float(loss) == pytest.approx(
        float(5 * terms["ce"] / 7 + 2 * terms["mlm"] / 4 + terms["cos"] / 7), rel=1e-6
    )
    logits = student.requires_grad_()
    _, terms = triple_loss_plain(logits, teacher, logits, teacher, labels, 2.0, 1.0, 1.0, 1.0)
    assert not any(term.requires_grad for term in terms.values())
    kl = nn.KLDivLoss(reduction="batchmean")(
        F.log_softmax(student / 2, -1), F.softmax(teacher / 2, -1)
    )
    textbook = (
        5 * kl * 4
        + 2 * nn.CrossEntropyLoss()(student, labels)
        + nn.CosineEmbeddingLoss()(student, teacher, torch.ones(7))
    )
    torch.testing.assert_close(loss, textbook)


@pytest.mark.parametrize("classes", [2, 3])
def test_task_losses_equal_torch(classes):
    student, teacher = torch.randn(5, classes), torch.randn(5, classes)
    labels = torch.tensor([0, classes - 1, 1, 1, 0])
    torch.testing.assert_close(
        response_distillation(student, teacher, 2.0),
        distillation_cross_entropy(student, teacher, 2.0),
    )
    torch.testing.assert_close(
        compute_classification_loss(student, labels), nn.CrossEntropyLoss()(student, labels)
    )
    scores = torch.tensor([1.0, 2.5, 0, 5, 3])
    one, other = student[:, :1], teacher[:, :1]
    torch.testing.assert_close(
        classification_loss_sum(one, scores), (one[:, 0] - scores).square().sum()
    )
    torch.testing.assert_close(
        compute_classification_loss(one, scores), nn.MSELoss()(one[:, 0], scores)
    )
    torch.testing.assert_close(response_distillation(one, other, 2.0), (one - other).square().sum())


def test_span_loss_ignores_positions_outside_of_the_window():
    start, end = torch.randn(4, 6), torch.randn(4, 6)
    starts, ends = torch.tensor([0, 5, 6, -1]), torch.tensor([2, 5, 9, 3])
    expected = sum(
        -float(logits[row].log_softmax(0)[position])
        for logits, positions in ((start, starts), (end, ends))
        for row, position in enumerate(positions.tolist())
        if 0 <= position < 6
    )
    assert float(span_loss(start, end, starts, ends)) == pytest.approx(expected / 2, rel=1e-5)
    outside = torch.full((4,), 6)
    assert span_loss(start, end, outside, outside) == 0


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_span_distillation_equals_each_window_cut_to_its_length(temperature):
    student = [torch.randn(3, 7, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(3, 7) for _ in range(2)]
    lengths = (7, 4, 1)
    mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
    loss = span_distillation(tuple(student), tuple(teacher), mask, temperature)
    expected = sum(
        distillation_cross_entropy(s[i : i + 1, :n], t[i : i + 1, :n], temperature) / 2
        for s, t in zip(student, teacher)
        for i, n in enumerate(lengths)
    )
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(
        torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    ):
        torch.testing.assert_close(mine, theirs)
        assert not mine[mask == 0].any()
