"""The losses of DistilBERT (arXiv 1910.01108, §2), plain and fused, and those of its fine-tuning.

Every loss is a SUM over its items (tokens, examples). The caller divides by the number of items
over all accumulation micro-batches and processes, so that a token weighs the same in a short batch
as in a long one. Rows are chosen before the loss: padding never enters it. Whatever the dtype of
the inputs, softmax, logarithms and sums are in fp32 (fp64 for fp64 inputs).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label of a position that is no target
PADDING_LOGIT = -1e30  # no probability, and finite: 0 x -inf would be NaN in the KL

# Tokens per matrix product of the fused loss, see `fused_triple_loss`; a GPU likes few and large.
CHUNK_SIZE = {"cpu": 512, "cuda": 4096}

# A GPU multiplies rows that are no whole number of 16 bytes several times slower.
COLUMN_MULTIPLE = {"cuda": 8}
ROWS_PER_BLOCK = 1024  # rows of a weight gradient that are added at a time

# Of fp32 work: 4 buffers x 16 x 30,522 x 4 B = 8 MB, within a core's share of L3.
ROWS_PER_THREAD = 16


class Projection(NamedTuple):
    """What makes logits [N, V]: the decoder's inputs [N, H], its weight [V, H] and bias [V]."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor


def _upcast(x: Tensor) -> Tensor:
    """To fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pad(x: Tensor, rows: int, value: float = 0.0) -> Tensor:
    """[V, ...] -> [V + rows, ...]; without rows no copy."""
    return torch.cat([x, x.new_full((rows, *x.shape[1:]), value)]) if rows else x


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
    student = F.log_softmax(_upcast(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_upcast(teacher_logits) / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum") * temperature**2


def masked_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [N, V] summed over the rows whose label [N] is not -100.

    No such row: 0, with zero gradients.
    """
    target = labels != IGNORE
    return F.cross_entropy(_upcast(logits[target]), labels[target], reduction="sum")


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """1 - cosine of hidden states [N, H], summed over the N tokens.

    Of the last layer and token by token: it aligns the directions of what the heads read. The
    student has no counterpart of the layers between, and its pooled vector is one token of many,
    which no loss of pre-training reads. Other shapes than [N, H] raise ValueError.
    """
    _check_rows("cosine_loss", student_hidden, teacher_hidden)
    same = torch.ones(len(student_hidden), device=student_hidden.device)
    return F.cosine_embedding_loss(
        _upcast(student_hidden), _upcast(teacher_hidden), same, reduction="sum"
    )


class _AttachGradients(torch.autograd.Function):
    """Gives `loss` its gradients with respect to `inputs`, known already: backward multiplies."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        """The loss; a gradient of None belongs to an input that needs none."""
        ctx.gradients, ctx.dtypes = gradients, [x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times that of the result, in place: the weight's is the largest."""
        if ctx.gradients is None:
            raise RuntimeError("backward through fused_triple_loss runs once per forward")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (
            None if gradient is None else gradient.mul_(grad_output).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes)
        )
        return None, None, *scaled


def _soften(
    logits: Tensor, bias: Tensor, temperature: float, scaled: Tensor, probabilities: Tensor
) -> Tensor:
    """Fill `scaled` = (logits + bias) / T and its softmax [R, V]; return the log-sum-exp [R]."""
    torch.add(bias / temperature, logits, alpha=1 / temperature, out=scaled)
    torch.softmax(scaled, dim=-1, out=probabilities)
    # log p = scaled - lse holds at the maximum too: no second pass of exponentials.
    return scaled.amax(-1) - probabilities.amax(-1).log()


def _terms_and_gradient(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor] | None,
    targets: Tensor,
    temperature: float,
    mlm_ratio: float,
    buffers: list[Tensor],
) -> tuple[Tensor | float, Tensor | float, Tensor]:
    """The sums ce and mlm of a group of rows, and their gradient with respect to the logits.

    `student` and `teacher` are (logits without bias [R, V], bias [V]); `targets` [M] are the labels
    of the first M rows. The gradient [R, V] is (q - p) + mlm_ratio (softmax - one-hot), in one of
    the four `buffers` [R, V].
    """
    scaled, q, teacher_scaled, p = buffers
    ce, mlm = 0.0, 0.0
    if teacher is None:
        gradient = q.zero_()
    else:
        lse = _soften(*student, temperature, scaled, q)
        teacher_lse = _soften(*teacher, temperature, teacher_scaled, p)
        # ce: sum of p (log p - log q); log p = teacher_scaled - teacher_lse, log q = scaled - lse
        difference = torch.dot(p.view(-1), teacher_scaled.sub_(scaled).view(-1))
        ce = temperature**2 * (difference - (teacher_lse - lse).sum())
        gradient = q.sub_(p)
    if count := len(targets):
        logits, bias = student
        scaled, softmax = scaled[:count], teacher_scaled[:count]
        each = torch.arange(count, device=targets.device)
        lse = _soften(logits[:count], bias, 1.0, scaled, softmax)
        mlm = (lse - scaled[each, targets]).sum()
        gradient[:count].add_(softmax, alpha=mlm_ratio)
        gradient[each, targets] -= mlm_ratio
    return ce, mlm, gradient


def _add_product(total: Tensor, x: Tensor, y: Tensor, scale: float, product: Tensor | None) -> None:
    """total [V, H] += scale * x.T @ y, through `product` [V, H] where the dtypes differ."""
    if total.dtype == x.dtype:
        total.addmm_(x.t(), y, alpha=scale)
        return
    product = torch.mm(x.t(), y, out=product)
    # In blocks: adding another dtype makes a copy first, which should stay in the cache.
    block = ROWS_PER_BLOCK if total.device.type == "cpu" else len(total)
    for into, part in zip(total.split(block), product.split(block)):
        into.add_(part, alpha=scale)


def _sums_and_gradients(
    student: Projection,
    teacher: Projection | None,
    targets: Tensor,
    temperature: float,
    scales: tuple[float, float],
    chunk_size: int,
    needs_grad: list[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Sums [ce, mlm] and gradients wrt inputs, weight and bias, chunk by chunk of rows.

    The first len(targets) rows are the masked ones; `needs_grad` says which gradients are formed.
    """
    x, weight, bias = student
    vocabulary = len(weight)
    chunks = max(1, math.ceil(len(x) / chunk_size))
    size = max(1, math.ceil(len(x) / chunks))  # of equal size: a short last chunk is slow
    on_cpu = x.device.type == "cpu"
    group = min(size, ROWS_PER_THREAD * torch.get_num_threads()) if on_cpu else size
    upcast = _upcast(x[:0])
    logits = [x.new_empty(size, vocabulary) for _ in range(1 if teacher is None else 2)]
    buffers = [upcast.new_empty(group, vocabulary) for _ in range(4)]
    # Gradients are formed in units of the scale of ce, so that fp16 neither under- nor overflows.
    unit = (scales[0] * temperature if teacher else scales[1]) or 1.0
    sums = upcast.new_zeros(2)
    dx = torch.empty_like(x) if needs_grad[0] else None
    dweight = upcast.new_zeros(weight.shape) if needs_grad[1] else None
    dbias = upcast.new_zeros(vocabulary) if needs_grad[2] else None
    in_parts = needs_grad[1] and weight.dtype != upcast.dtype
    product = torch.empty_like(weight) if in_parts else None
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        out = torch.mm(rows, weight.t(), out=logits[0][: len(rows)])
        if teacher:
            taught = teacher.inputs[start : start + size]
            softened = torch.mm(taught, teacher.weight.t(), out=logits[1][: len(rows)])
        for first in range(0, len(rows), group):
            last = min(first + group, len(rows))
            ce, mlm, gradient = _terms_and_gradient(
                (out[first:last], bias),
                (softened[first:last], teacher.bias) if teacher else None,
                targets[start + first : start + last],
                temperature,
                scales[1] / unit,
                [buffer[: last - first] for buffer in buffers],
            )
            sums[0] += ce
            sums[1] += mlm
            if any(needs_grad):
                out[first:last] = gradient
            if dbias is not None:
                dbias.add_(gradient.sum(0), alpha=unit)
        if dx is not None:
            torch.mm(out, weight, out=dx[start : start + size])
        if dweight is not None:
            _add_product(dweight, out, rows, unit, product)
    return sums, [None if dx is None else _upcast(dx) * unit, dweight, dbias]


def fused_triple_loss(
    student: Projection,
    teacher: Projection | None,
    labels: Tensor,
    temperature: float,
    ce_scale: float,
    mlm_scale: float,
    chunk_size: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """ce_scale x ce + mlm_scale x mlm from what the decoders read, never holding [N, V] logits.

    The N rows are tokens without padding, the same of student and teacher, which may differ in
    width; labels [N] are -100 where not masked. ce runs over all rows, mlm over the masked ones.
    Returns the loss, differentiable in the student's three tensors, and the plain sums {"ce",
    "mlm"}, detached. Scales are the weight of a term over its denominator. A term of scale 0 is
    neither computed nor returned; without ce no teacher is needed, and masked rows alone are
    projected.

    The gradient with respect to the logits is T (q - p) and softmax - one-hot, known as soon as the
    logits are. So each chunk of `chunk_size` tokens (by default what suits the device) is
    projected, turned into its gradient in place and multiplied out in the forward pass: 4 products
    of N x V x H, none of them repeated.
    (Chunks of the vocabulary would need the log-sum-exp first, that is each projection twice.)
    Backward only multiplies by the incoming gradient, and may run once (RuntimeError).

    Memory: two [chunk_size, V] buffers of the product dtype; the fp32 work runs in groups of rows
    small enough for the cache of a CPU. Products are in the autocast dtype or else that of
    the student's inputs; all between, and the sum of weight gradients over chunks, is in fp32. A
    teacher weight kept in the product dtype saves its conversion at every call.

    Raises ValueError for a temperature or chunk size out of range, and for ce without a teacher.
    """
    device = labels.device.type
    if chunk_size is None:
        chunk_size = CHUNK_SIZE.get(device, CHUNK_SIZE["cpu"])
    if not (temperature > 0 and chunk_size > 0):
        raise ValueError("temperature and chunk_size must be positive")
    if ce_scale and teacher is None:
        raise ValueError("ce needs a teacher")
    needs_grad = [torch.is_grad_enabled() and x.requires_grad for x in student]
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else student.inputs.dtype
    with torch.no_grad(), torch.autocast(device, enabled=False):
        # Masked rows first: a term on masked rows then runs over slices, not over index lists.
        rows = (labels == IGNORE).byte().argsort(stable=True)
        masked_rows = rows[: int((labels != IGNORE).sum())]
        if not ce_scale:
            rows = masked_rows

        vocabulary = len(student.weight)
        padding = -vocabulary % COLUMN_MULTIPLE.get(device, 1)

        def prepared(given: Projection) -> Projection:
            return Projection(
                given.inputs[rows].to(dtype),
                _pad(given.weight.to(dtype), padding),
                _pad(_upcast(given.bias), padding, PADDING_LOGIT),
            )

        sums, gradients = _sums_and_gradients(
            prepared(student),
            prepared(teacher) if teacher and ce_scale else None,
            labels[masked_rows] if mlm_scale else labels[:0],
            temperature,
            (ce_scale, mlm_scale),
            chunk_size,
            needs_grad,
        )
        gradients[1:] = (None if g is None else g[:vocabulary] for g in gradients[1:])
        if (of_rows := gradients[0]) is not None:
            gradients[0] = whole = of_rows.new_zeros(student.inputs.shape)
            whole[rows] = of_rows
        loss = ce_scale * sums[0] + mlm_scale * sums[1]
        terms = {
            name: total
            for name, total, scale in zip(("ce", "mlm"), sums.unbind(), (ce_scale, mlm_scale))
            if scale
        }
    return _AttachGradients.apply(loss, gradients, *student), terms


def response_distillation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Distillation of a task head, logits [B, C], summed over the B examples.

    T² x KL(teacher || student) as in pre-training; for regression (C = 1), where a softmax would
    be constant, the squared error between the two scores, without temperature.
    """
    if student_logits.shape[-1] > 1:
        return distillation_cross_entropy(student_logits, teacher_logits, temperature)
    _check_rows("response_distillation", student_logits, teacher_logits)
    return F.mse_loss(_upcast(student_logits), _upcast(teacher_logits), reduction="sum")


def span_loss(
    start_logits: Tensor, end_logits: Tensor, start_positions: Tensor, end_positions: Tensor
) -> Tensor:
    """Mean of the cross-entropies of start and end, logits [B, L], summed over the B windows.

    A position [B] outside of 0..L-1 adds 0 (the answer is not in this window).
    """

    def one_side(logits: Tensor, positions: Tensor) -> Tensor:
        inside = (positions >= 0) & (positions < logits.shape[1])
        return masked_lm_loss(logits, positions.masked_fill(~inside, IGNORE))

    return (one_side(start_logits, start_positions) + one_side(end_logits, end_positions)) / 2


def span_distillation(
    student_logits: tuple[Tensor, Tensor],
    teacher_logits: tuple[Tensor, Tensor],
    attention_mask: Tensor,
    temperature: float,
) -> Tensor:
    """Mean of T² x KL over start and end, (start, end) logits [B, L] each, summed over B windows.

    Padding columns (attention_mask [B, L] is 0) have no probability on either side.
    """
    padding = attention_mask == 0
    start, end = (
        distillation_cross_entropy(
            _upcast(student).masked_fill(padding, PADDING_LOGIT),
            _upcast(teacher).masked_fill(padding, PADDING_LOGIT),
            temperature,
        )
        for student, teacher in zip(student_logits, teacher_logits)
    )
    return (start + end) / 2


def classification_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [B, C] and labels [B] summed over examples; C = 1: squared error."""
    if logits.shape[-1] > 1:
        return F.cross_entropy(_upcast(logits), labels, reduction="sum")
    return F.mse_loss(_upcast(logits[:, 0]), labels.to(_upcast(logits).dtype), reduction="sum")


def compute_classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of `classification_loss_sum` over the B examples."""
    return classification_loss_sum(logits, labels) / len(labels)


def compute_mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, L, V] over labels [B, L] that are not -100; none: 0."""
    count = (labels != IGNORE).sum().clamp(min=1)
    return masked_lm_loss(logits.flatten(0, -2), labels.flatten()) / count
