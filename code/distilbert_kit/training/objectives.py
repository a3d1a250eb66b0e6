"""What is minimised: the interface to the loop, fine-tuning, and the triple loss.

The triple loss is that of arXiv 1910.01108, section 2, with the weights that the author confirms
in transformers#2013 (5, 2, 1). Masked-LM training is the same with the two distillation weights
at 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batches import Batch, MLMDataset, model_inputs
from ..errors import UserError
from ..losses import IGNORE, Projection, cosine_loss, fused_triple_loss
from ..models.model import DistilBERTForMaskedLM
from ..settings import LossWeights, SoftTargets

Sums = dict[str, Tensor]
TaskLoss = Callable[..., Tensor]


def _unchanged(batch: Batch, generator: torch.Generator) -> Batch:
    return batch


@dataclass(frozen=True)
class Objective:
    """What is minimised: sum over terms of weight x (sum of the term / its denominator).

    `counts(batch)`: how many items each term's mean runs over in this batch, before the forward
    pass. `loss(model, batch, denominators)`: the weighted scalar to differentiate and the plain
    sums by term. `prepare(batch, generator)`: randomness of the data (masks). It and dropout are
    seeded per micro-batch, so that a resumed run and any number of processes draw the same.
    """

    counts: Callable[[Batch], Sums]
    loss: Callable[[nn.Module, Batch, dict[str, float]], tuple[Tensor, Sums]]
    prepare: Callable[[Batch, torch.Generator], Batch] = _unchanged


def check_single_label(model: nn.Module) -> None:
    """Refuse a multi-label model, ours or transformers': here an example has one label."""
    if getattr(model, "multi_label", False):
        raise UserError(
            "a multi-label model: one label an example is read; give a single-label model"
        )


def fine_tuning_objective(hard: TaskLoss, soft: TaskLoss, targets: SoftTargets | None) -> Objective:
    """Fine-tuning on a task; with `targets`, also towards the teacher's logits in the batch.

    `hard(output, batch)` and `soft(output, batch, temperature)` are sums over the examples. The
    terms are "loss", the hard one, and "soft". UserError for `targets` and a batch without them.
    """
    share = targets.soft_weight if targets else 0.0
    weights = {"loss": 1 - share} | ({"soft": share} if targets else {})

    def counts(batch: Batch) -> Sums:
        return dict.fromkeys(weights, torch.tensor(float(len(batch["input_ids"]))))

    def loss(model: nn.Module, batch: Batch, denominators: dict[str, float]) -> tuple[Tensor, Sums]:
        check_single_label(model)
        output = model(**model_inputs(batch))
        sums = {"loss": hard(output, batch)}
        if targets:
            if "teacher_logits" not in batch:
                raise UserError("soft targets but no teacher: set teacher_logits of the data set")
            sums["soft"] = soft(output, batch, targets.temperature)
        terms = [weights[name] * value / denominators[name] for name, value in sums.items()]
        return sum(terms[1:], terms[0]), {name: value.detach() for name, value in sums.items()}

    return Objective(counts, loss)


MASKED_LM = LossWeights(ce=0.0, mlm=1.0, cos=0.0)
_KNOWN = ("ce", "mlm", "cos", "temperature", "ce_rows")  # of LossWeights, what is computed here


def triple_objective(
    dataset: MLMDataset, weights: LossWeights, teacher: DistilBERTForMaskedLM | None = None
) -> Objective:
    """The triple loss of a masked-LM student under `teacher`, as sums with their counts.

    L_ce and L_cos run over all non-padding tokens, L_mlm over masked ones. L_cos compares hidden
    states, so widths must be equal when its weight is not 0. Raises UserError when a term needs a
    teacher that is not there, and for a weight, new in LossWeights, that has no term here.
    """
    if unknown := [name for name, weight in weights if weight and name not in _KNOWN]:
        raise UserError(
            f"{unknown[0]}: a weight of the loss without a term; add the term to triple_objective "
            "in training/objectives.py, or set the weight to 0"
        )
    if teacher is None and weights.needs_teacher:
        raise UserError("ce and cos need a teacher: name one, or set their weights to 0")
    if not weights.needs_teacher:
        teacher = None  # masked LM alone asks none
    if teacher is not None:
        teacher = teacher.eval().requires_grad_(False)

    def counts(batch):
        masked = (batch["labels"] != IGNORE).sum()
        tokens = batch["attention_mask"].sum()
        found = {"ce": tokens if weights.on_all_tokens else masked, "mlm": masked, "cos": tokens}
        return {name: count for name, count in found.items() if getattr(weights, name)}

    def projection(model, hidden):
        return Projection(model.head(hidden), model.decoder_weight, model.decoder_bias)

    def loss(model, batch, denominators):
        # Rows by index, not by a vocabulary-wide mask: padding never reaches the head.
        real = batch["attention_mask"].flatten().nonzero().squeeze(1)
        labels = batch["labels"].flatten()[real]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden = model.encoder.last_hidden_state(**inputs).flatten(0, 1)[real]
        scales = {name: getattr(weights, name) / n for name, n in denominators.items()}
        rows = slice(None) if weights.on_all_tokens else (labels != IGNORE).nonzero().squeeze(1)
        with torch.no_grad():
            teacher_hidden = taught = None
            if teacher is not None:
                teacher_hidden = teacher.encoder.last_hidden_state(**inputs).flatten(0, 1)[real]
                if "ce" in scales:
                    taught = projection(teacher, teacher_hidden[rows])
        total, sums = fused_triple_loss(
            projection(model, hidden[rows]),
            taught,
            labels[rows],
            weights.temperature,
            scales.get("ce", 0.0),
            scales.get("mlm", 0.0),
        )
        if teacher_hidden is not None and "cos" in scales:
            cos = cosine_loss(hidden, teacher_hidden)
            total = total + scales["cos"] * cos
            sums = sums | {"cos": cos.detach()}
        return total, sums

    return Objective(counts, loss, dataset.mask)
