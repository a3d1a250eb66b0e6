"""The losses of DistilBERT (arXiv 1910.01108, §3), plain and fused, and those of its fine-tuning.

Every loss is a SUM over its items (tokens, examples). The caller divides by the number of items
over all accumulation micro-batches and processes, so that a token weighs the same in a short batch
as in a long one. Rows are chosen before the loss: padding never enters it. Whatever the dtype of
the inputs, softmax, logarithms and sums are in fp32 (fp64 for fp64 inputs).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label of a position that is no target
PADDING_LOGIT = -1e30  # no probability, and finite: 0 x -inf would be NaN in the KL
CHUNK_SIZE = 1024  # tokens per matrix product of the fused loss, see `fused_triple_loss`
ROWS_PER_THREAD = 8  # rows of fp32 work that stay in a core's cache: 8 x 30,522 x 4 B = 1 MB

CeRows = Literal["all", "masked"]


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_rows(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"{name} takes rows of real tokens, student and teacher alike [N, D], not "
            f"{list(student.shape)} and {list(teacher.shape)}: select the non-padding rows first"
        )


def distillation_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """T² x KL(teacher || student) of logits [N, V] softened by T, summed over the N rows.

    With p = softmax(teacher / T) and q = softmax(student / T), d KL / d student = (q - p) / T. For
    large T, q - p is itself about (centred logit difference) / (V T): the gradient shrinks as
    1 / T². The factor T² undoes that, so the weight of the term keeps its meaning when T changes
    (Hinton et al., arXiv 1503.02531, §2; asked in transformers#1181).

    KL and the paper's cross-entropy differ by the teacher's entropy, a constant: same gradient.
    The mean to take is over non-padding tokens. torch's `batchmean` divides by the first dimension
    only: right for selected rows [N, V], and about L times too large, with padding counted, for
    [B, L, V]. Other shapes than [N, V] therefore raise ValueError.
    """
    _check_rows("distillation_cross_entropy", student_logits, teacher_logits)
    student = F.log_softmax(_exact(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_exact(teacher_logits) / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum") * temperature**2


def masked_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [N, V] summed over the rows whose label [N] is not -100.

    No such row: 0, with zero gradients.
    """
    target = labels != IGNORE
    return F.cross_entropy(_exact(logits[target]), labels[target], reduction="sum")


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """1 - cosine of hidden states [N, H], summed over the N tokens.

    Of the last layer and token by token: it aligns the directions of what the heads read. The
    student has no counterpart of the layers between, and its pooled vector is one token of many,
    which no loss of pre-training reads. Other shapes than [N, H] raise ValueError.
    """
    _check_rows("cosine_loss", student_hidden, teacher_hidden)
    same = torch.ones(len(student_hidden), device=student_hidden.device)
    return F.cosine_embedding_loss(
        _exact(student_hidden), _exact(teacher_hidden), same, reduction="sum"
    )


def triple_loss_plain(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    labels: Tensor,
    temperature: float,
    ce_scale: float,
    mlm_scale: float,
    cos_scale: float,
    ce_rows: CeRows = "all",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The reference: ce_scale x ce + mlm_scale x mlm + cos_scale x cos, and the sums by term.

    Logits [N, V], hidden states [N, H] and labels [N] (-100: not masked) of the non-padding tokens.
    A scale is the weight of a term divided by its denominator. `ce_rows="masked"` takes the KL on
    masked tokens only, which changes the objective of the paper.
    """
    rows = slice(None) if ce_rows == "all" else labels != IGNORE
    ce = distillation_cross_entropy(student_logits[rows], teacher_logits[rows], temperature)
    mlm = masked_lm_loss(student_logits, labels)
    cos = cosine_loss(student_hidden, teacher_hidden)
    loss = ce_scale * ce + mlm_scale * mlm + cos_scale * cos
    return loss, {"ce": ce.detach(), "mlm": mlm.detach(), "cos": cos.detach()}


class _AttachGradients(torch.autograd.Function):
    """Gives `loss` gradients that are known already: backward only multiplies."""

    @staticmethod
    def forward(ctx, loss, gradients, *inputs):  # noqa: D102
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_output):  # noqa: D102
        scaled = (
            None if g is None else (g * grad_output).to(dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        )
        return None, None, *scaled


def fused_triple_loss(
    student_transformed: Tensor,
    student_decoder_weight: Tensor,
    student_decoder_bias: Tensor,
    teacher_transformed: Tensor,
    teacher_decoder_weight: Tensor,
    teacher_decoder_bias: Tensor,
    labels: Tensor,
    temperature: float,
    ce_scale: float,
    mlm_scale: float,
    chunk_size: int = CHUNK_SIZE,
    ce_rows: CeRows = "all",
) -> tuple[Tensor, dict[str, Tensor]]:
    """ce_scale x ce + mlm_scale x mlm from what the decoders read, never holding [N, V] logits.

    Shapes: student_transformed [N, H_s], student weight [V, H_s] and bias [V]; teacher the same
    with its own width H_t; labels [N], -100 where not masked; N counts non-padding tokens. Returns
    the loss, differentiable in the three student tensors, and the plain sums {"ce", "mlm"},
    detached. Scales are the weight of a term over its denominator. A term of scale 0 is neither
    computed nor returned; without ce the teacher is not projected, and without ce on all rows only
    masked tokens are projected.

    The gradient with respect to the logits is T (q - p) and softmax - one-hot, known as soon as the
    logits are. So each chunk of `chunk_size` tokens is projected, turned into its gradient in
    place and multiplied out in the forward pass. That is 4 products of N x V x H, none of them
    repeated. (Chunks of the vocabulary would need the log-sum-exp first, that is every product
    with V twice.) Memory: two [chunk_size, V] buffers of the product dtype; the fp32 work runs in
    groups of rows small enough for the cache of a CPU. Products are in the autocast dtype or else
    that of `student_transformed`; everything between, and the sum of weight gradients over chunks,
    is in fp32.
    """
    if not (temperature > 0 and chunk_size > 0 and ce_rows in ("all", "masked")):
        raise ValueError("temperature and chunk_size must be positive, ce_rows 'all' or 'masked'")
    student = (student_transformed, student_decoder_weight, student_decoder_bias)
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in student]
    with torch.no_grad(), torch.autocast(labels.device.type, enabled=False):
        ...
