"""Masked-LM training and distillation on a prepared corpus: objective, validation, run.

The triple loss of arXiv 1910.01108, section 2, with the weights that the author confirms in
transformers#2013 (5, 2, 1), as an Objective for THE loop. Masked-LM training is the same with the
two distillation weights at 0.
"""

import math
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from tqdm.auto import tqdm

from .data import LengthBatchSampler, MLMDataset, create_dataloader
from .errors import UserError
from .evaluation import autocast
from .experiment import Cell, corpus_cell
from .losses import IGNORE, cosine_loss, fused_triple_loss
from .measure import DTYPES, matrix_product_rate, training_flops
from .memory import keeping_freed_memory
from .model import count_parameters
from .records import recording
from .settings import CorpusSettings, LossWeights, MaskedLMSettings
from .shards import open_shards
from .training import Objective, TrainingResult, create_accelerator, train
from .weights import get_tokenizer

MASKED_LM = LossWeights(ce=0.0, mlm=1.0, cos=0.0)


def triple_objective(
    dataset: MLMDataset, weights: LossWeights, teacher: nn.Module | None = None
) -> Objective:
    """The triple loss of a masked-LM student under `teacher`, as sums with their counts.

    L_ce and L_cos run over all non-padding tokens, L_mlm over masked ones. Hidden states meet in
    L_cos, so widths must be equal when its weight is not 0. Raises UserError when a term needs a
    teacher that is not there.
    """
    if teacher is None and (weights.ce or weights.cos):
        raise UserError("ce and cos need a teacher: name one, or set their weights to 0")
    if teacher is not None:
        teacher = teacher.eval().requires_grad_(False)

    def counts(batch):
        masked = (batch["labels"] != IGNORE).sum()
        tokens = batch["attention_mask"].sum()
        found = {"ce": tokens if weights.ce_rows == "all" else masked, "mlm": masked, "cos": tokens}
        return {name: count for name, count in found.items() if getattr(weights, name)}

    def loss(model, batch, denominators):
        # Rows by index, not by a vocabulary-wide mask: padding never reaches the head.
        real = batch["attention_mask"].flatten().nonzero().squeeze(1)
        labels = batch["labels"].flatten()[real]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden = model.encoder.hidden_states(**inputs).flatten(0, 1)[real]
        scales = {name: getattr(weights, name) / n for name, n in denominators.items()}
        # Without ce only masked rows are read: the head need not see the others.
        rows = slice(None) if "ce" in scales else (labels != IGNORE).nonzero().squeeze(1)
        with torch.no_grad():
            taught = transformed = None
            if teacher is not None:
                taught = teacher.encoder.hidden_states(**inputs).flatten(0, 1)[real]
            if "ce" in scales:
                transformed = teacher.head(taught)
        source = model if teacher is None else teacher
        total, sums = fused_triple_loss(
            model.head(hidden[rows]),
            model.decoder_weight,
            model.decoder_bias,
            transformed,
            source.decoder_weight,
            source.decoder_bias,
            labels[rows],
            weights.temperature,
            scales.get("ce", 0.0),
            scales.get("mlm", 0.0),
            ce_rows=weights.ce_rows,
        )
        if "cos" in scales:
            cos = cosine_loss(hidden, taught)
            total = total + scales["cos"] * cos
            sums = sums | {"cos": cos.detach()}
        return total, sums

    return Objective(counts, loss, dataset.mask)


def cast_linear_layers(teacher: nn.Module, precision: str) -> nn.Module:
    """Keep the linear layers of a teacher, in place, in the dtype of their products.

    Autocast rounds them to it anyway: the same outputs from half of the memory.
    """
    for module in teacher.modules():
        if isinstance(module, nn.Linear):
            module.to(DTYPES[precision])
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
    return {name: totals[name] / max(items[name], 1.0) for name in totals}


def open_corpus(folder: Path, split: str, settings: CorpusSettings) -> MLMDataset:
    """A split of a prepared corpus with the masking that the recipe asks for."""
    tokenizer = get_tokenizer()
    shards = open_shards(folder, split, tokenizer)
    return MLMDataset(
        shards,
        shards.lengths,
        tokenizer,
        torch.from_numpy(shards.token_counts),
        settings.mask_probability,
        settings.mask_smoothing,
    )


def train_on_corpus(
    model: nn.Module,
    corpus: Path,
    masking: CorpusSettings,
    settings: MaskedLMSettings,
    weights: LossWeights,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    checkpoints: Path | None = None,
    description: str = "training",
) -> tuple[TrainingResult, dict[str, dict[str, float]]]:
    """Train a masked LM (under a teacher) on a corpus; returns the run and validation losses.

    Validation losses are those before and after, on the held-out split.
    """
    device = create_accelerator(settings.precision).device  # where the loop will train
    model.to(device)
    if teacher is not None:
        check_pair(teacher, model, weights)
        cast_linear_layers(teacher, settings.precision).to(device)
    held_out, dataset = (open_corpus(corpus, split, masking) for split in ("validation", "train"))
    objective = triple_objective(dataset, weights, teacher)
    sampler = LengthBatchSampler(
        dataset.lengths, settings.batch_size, settings.batch_tokens, seed=seed
    )
    validate = (model, held_out, objective, settings.precision, 8192)
    losses = {"before": validation_losses(*validate)}
    result = train(
        model,
        create_dataloader(dataset, sampler),
        objective,
        settings,
        seed=seed,
        description=description,
        checkpoint_folder=checkpoints,
        checkpoint_every=settings.checkpoint_every,
    )
    losses["after"] = validation_losses(*validate)
    return result, losses


def flops_per_token(
    model: nn.Module, dataset: MLMDataset, weights: LossWeights, teacher: nn.Module | None = None
) -> float:
    """Matrix-product FLOPs that the objective asks for, per real token: the mean of a data set."""
    lengths = dataset.lengths.astype(int)
    tokens = int(lengths.sum())
    masked = math.ceil(dataset.mask_probability * tokens)
    rows = tokens if weights.ce and weights.ce_rows == "all" else masked
    taught = teacher.config if teacher is not None else None
    return training_flops(model.config, lengths, rows, taught, rows if weights.ce else 0) / tokens


def train_cell(
    cell: Cell,
    model: nn.Module,
    settings: MaskedLMSettings,
    weights: LossWeights,
    teacher: nn.Module | None = None,
) -> None:
    """Train a model of a recipe on the recipe's corpus; leave its weights and its record."""
    masking, corpus = cell.recipe.corpus, corpus_cell(cell.recipe).folder
    with recording(cell.record, **cell.provenance) as draft:
        device = create_accelerator(settings.precision).device
        size = 1024 if device.type == "cpu" else 8192  # a fraction of a second
        rate = matrix_product_rate(DTYPES[settings.precision], size, device=device)
        result, losses = train_on_corpus(
            model,
            corpus,
            masking,
            settings,
            weights,
            seed=masking.seed,
            teacher=teacher,
            checkpoints=cell.checkpoints,
            description=cell.name,
        )
        result.describe(draft)
        dataset = open_corpus(corpus, "train", masking)
        flops = round(result.tokens * flops_per_token(model, dataset, weights, teacher))
        draft.metrics |= {
            "validation": losses,
            "parameters": count_parameters(model),
            "train_flops": flops,
        }
        peak = 1e9 * rate * PartialState().num_processes
        draft.extra |= {
            "matrix_product_gflops": round(rate, 1),
            "share_of_matrix_products": round(flops / result.seconds / peak, 4),
        }
        if PartialState().is_main_process:
            model.save_pretrained(cell.folder, get_tokenizer())
    if PartialState().is_main_process:
        cell.stamp_folder()
        print(f"{cell.name}: validation {losses['before']} -> {losses['after']}")


def check_pair(teacher: nn.Module, student: nn.Module, weights: LossWeights) -> None:
    """Refuse a pair whose vocabularies differ, or whose widths do when L_cos is asked for."""
    ours, theirs = student.config, teacher.config
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
