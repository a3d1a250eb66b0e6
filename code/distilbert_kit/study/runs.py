"""Runs the cells of masked-LM training, and writes evaluations into records."""

import math
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ..data.batches import MLMDataset
from ..files import write_atomically
from ..models.model import DistilBERTForMaskedLM, count_parameters
from ..settings import LossWeights, MaskedLMSettings
from ..training.distillation import open_corpus, train_on_corpus
from ..training.fine_tuning import Evaluation
from ..training.loop import training_device
from ..training.precision import DTYPES, usable_precision
from .cell import Cell
from .cells import corpus_cell
from .measure import head_training_flops, matrix_product_rate, training_flops
from .records import Draft, recording


def record_evaluations(
    draft: Draft, evaluations: dict[str, Evaluation], predictions: Callable[[str], Path]
) -> None:
    """Metrics of every split into the draft of a record, rows to the file predictions(split)."""
    for split, found in evaluations.items():
        draft.data.append(found.used)
        draft.metrics[split] = found.metrics
        draft.extra[f"{split}_examples_per_second"] = found.examples_per_second
        rows = found.frame.to_parquet(compression="zstd", index=False)
        write_atomically(predictions(split), rows)
        draft.add_output(predictions(split))


def flops_per_token(
    model: DistilBERTForMaskedLM,
    dataset: MLMDataset,
    weights: LossWeights,
    teacher: DistilBERTForMaskedLM | None = None,
) -> float:
    """Matrix-product FLOPs that the objective asks for, per real token: the mean of a data set."""
    lengths = dataset.lengths.astype(int)
    tokens = int(lengths.sum())
    masked = math.ceil(dataset.mask_probability * tokens)
    rows = tokens if weights.on_all_tokens else masked
    teacher_config = teacher.config if teacher is not None and weights.needs_teacher else None
    if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
        return head_training_flops(model.config, lengths, rows) / tokens
    teacher_rows = rows if weights.ce else 0
    return training_flops(model.config, lengths, rows, teacher_config, teacher_rows) / tokens


def train_cell(
    cell: Cell,
    model: DistilBERTForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    settings: MaskedLMSettings,
    weights: LossWeights,
    teacher: DistilBERTForMaskedLM | None = None,
) -> None:
    """Train a model of a recipe on the recipe's corpus; leave its weights and its record.

    `tokenizer` is the model's own, and the teacher's.
    """
    masking, corpus = cell.recipe.require("corpus"), corpus_cell(cell.recipe).made
    with recording(cell.record, **cell.provenance) as draft:
        cell.check_outputs()
        device = training_device(settings.precision)
        size = 1024 if device.type == "cpu" else 8192  # a fraction of a second
        rate = matrix_product_rate(
            DTYPES[usable_precision(settings.precision)], size, device=device
        )
        result, losses = train_on_corpus(
            model,
            tokenizer,
            corpus,
            masking,
            settings,
            weights,
            seed=cell.settings["corpus"]["seed"],
            teacher=teacher,
            **cell.resumable,
        )
        draft.metrics |= result.metrics
        draft.extra |= result.speed
        dataset = open_corpus(corpus, "train", masking, tokenizer)
        flops = round(result.tokens * flops_per_token(model, dataset, weights, teacher))
        draft.metrics |= {
            "validation": losses,
            "parameters": count_parameters(model),
            "train_flops": flops,
        }
        processes = PartialState().num_processes
        peak = 1e9 * rate * processes
        draft.extra |= {
            "processes": processes,
            "matrix_product_gflops": round(rate, 1),
            "share_of_matrix_products": round(flops / result.seconds / peak, 4),
        }
        if PartialState().is_main_process:
            model.save_pretrained(cell.folder, tokenizer)
    if PartialState().is_main_process:
        cell.stamp_folder()
        before, after = losses["before"], losses["after"]
        shown = (f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in after)
        print(f"{cell.name}: held-out losses {', '.join(shown)}; {cell.folder}")
