"""The triple loss on full logits: the reference of the fused one."""

from torch import Tensor

from distilbert_kit.losses import cosine_loss, distillation_cross_entropy, masked_lm_loss


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """The reference: ce_scale x ce + mlm_scale x mlm + cos_scale x cos, and the sums by term.

    Logits [N, V], hidden states [N, H] and labels [N] (-100: not masked) of the non-padding tokens.
    A scale is the weight of a term divided by its denominator.
    """
    ce = distillation_cross_entropy(student_logits, teacher_logits, temperature)
    mlm = masked_lm_loss(student_logits, labels)
    cos = cosine_loss(student_hidden, teacher_hidden)
    loss = ce_scale * ce + mlm_scale * mlm + cos_scale * cos
    return loss, {"ce": ce.detach(), "mlm": mlm.detach(), "cos": cos.detach()}
