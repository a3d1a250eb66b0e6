"""Masked-LM training and distillation on a prepared corpus: validation and the run."""

import math
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..corpus.shards import open_shards
from ..data.batches import (
    LengthBatchSampler,
    MLMDataset,
    create_dataloader,
    model_inputs,
)
from ..errors import NonFiniteError, UserError
from ..losses import IGNORE, masked_lm_loss
from ..machine import keeping_freed_memory
from ..models.hub_layout import HubModel
from ..models.model import DistilBERTForMaskedLM
from ..settings import CorpusSettings, LossWeights, MaskedLMSettings
from .checkpointing import TrainingResult
from .loop import train, training_device
from .objectives import Objective, triple_objective
from .precision import DTYPES, autocast, usable_precision


def cast_linear_layers(teacher: nn.Module, precision: str) -> nn.Module:
    """Keep the linear layers of a teacher, in place, in the dtype of their products.

    Autocast rounds them to it anyway: the same outputs from half of the memory.
    """
    for module in teacher.modules():
        if isinstance(module, nn.Linear):
            module.to(DTYPES[usable_precision(precision)])
    return teacher


@keeping_freed_memory()
def validation_losses(
    model: nn.Module, dataset: MLMDataset, objective: Objective, precision: str, batch_tokens: int
) -> dict[str, float]:
    """Mean of each term over a held-out split, masks drawn from a fixed seed."""
    device = next(model.parameters()).device
    sampler = LengthBatchSampler(dataset.lengths, len(dataset), batch_tokens, shuffle=False)
    totals: dict[str, float] = {}
    items: dict[str, float] = {}
    model.eval()
    bar = tqdm(create_dataloader(dataset, sampler), desc="validating", leave=False, mininterval=1)
    with torch.no_grad(), autocast(device, precision):
        for number, batch in enumerate(bar):
            batch = objective.prepare(batch, torch.Generator().manual_seed(number))
            batch = {name: value.to(device) for name, value in batch.items()}
            counts = objective.counts(batch)
            _, sums = objective.loss(model, batch, dict.fromkeys(counts, 1.0))
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
                items[name] = items.get(name, 0.0) + float(counts[name])
    losses = {name: totals[name] / max(items[name], 1.0) for name in totals}
    if not all(map(math.isfinite, losses.values())):
        raise NonFiniteError(
            f"the held-out loss is not finite ({losses}); lower the learning rate or use fp32"
        )
    return losses


def open_corpus(
    folder: Path, split: str, settings: CorpusSettings, tokenizer: PreTrainedTokenizerBase
) -> MLMDataset:
    """A split of a prepared corpus with the masking that the recipe asks for.

    Raises UserError when it was prepared with another vocabulary than the tokenizer's, and when a
    bit of it is not as it was written.
    """
    shards = open_shards(folder, split, tokenizer, checksums=True)
    return MLMDataset(
        shards,
        shards.lengths,
        tokenizer,
        torch.from_numpy(shards.token_counts),
        settings.mask_probability,
        settings.mask_smoothing,
    )


def train_on_corpus(
    model: DistilBERTForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    masking: CorpusSettings,
    settings: MaskedLMSettings,
    weights: LossWeights,
    *,
    seed: int,
    teacher: DistilBERTForMaskedLM | None = None,
    checkpoints: Path | None = None,
    identity: str | None = None,
    description: str = "training",
) -> tuple[TrainingResult, dict[str, dict[str, float]]]:
    """Train a masked LM (under a teacher) on a corpus; returns the run and validation losses.

    `tokenizer` is the model's own, and the teacher's. Validation losses are those before and after,
    on the held-out split; `validate_every` of the settings adds those in between to the history.
    `checkpoints` and `identity` are those of `train`.
    """
    device = training_device(settings.precision)
    model.to(device)
    if teacher is not None:
        check_pair(teacher, model, weights)
        cast_linear_layers(teacher, settings.precision).to(device)
    held_out, dataset = (
        open_corpus(corpus, split, masking, tokenizer) for split in ("validation", "train")
    )
    objective = triple_objective(dataset, weights, teacher)
    sampler = LengthBatchSampler(dataset.lengths, settings.batch_size, settings.batch_tokens)

    def validate() -> dict[str, float]:
        return validation_losses(model, held_out, objective, settings.precision, 8192)

    losses = {"before": validate()}
    result = train(
        model,
        create_dataloader(dataset, sampler),
        objective,
        settings,
        seed=seed,
        description=description,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        identity=identity,
        validate=validate,
        validate_every=settings.validate_every,
    )
    losses["after"] = validate()
    return result, losses


def check_pair(teacher: HubModel, student: HubModel, weights: LossWeights) -> None:
    """Refuse a pair of two families or vocabularies, or of two widths when L_cos is asked for."""
    ours, theirs = student.config, teacher.config
    if ours.family != theirs.family:
        raise UserError(
            f"the teacher is of the {theirs.family} family and the student of {ours.family}'s: "
            "use models of one family"
        )
    if ours.vocab_size != theirs.vocab_size:
        raise UserError(
            f"the teacher has {theirs.vocab_size:,} tokens and the student {ours.vocab_size:,}: "
            "use models of one vocabulary"
        )
    if weights.cos and ours.hidden_size != theirs.hidden_size:
        raise UserError(
            f"the teacher is {theirs.hidden_size} wide and the student {ours.hidden_size}: "
            "L_cos needs equal widths; set its weight to 0"
        )


def compute_mlm_loader_loss(model: nn.Module, loader: DataLoader) -> float:
    """Mean masked-LM loss over all masked tokens of a loader (not the mean of batch means).

    Batches go to the device where the model is.
    """
    total, count = 0.0, 0
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            batch = {name: value.to(device) for name, value in batch.items()}
            logits = model(**model_inputs(batch)).logits
            total += float(masked_lm_loss(logits.flatten(0, 1), batch["labels"].flatten()))
            count += int((batch["labels"] != IGNORE).sum())
    return total / max(count, 1)
