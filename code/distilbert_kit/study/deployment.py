"""A classifier in PyTorch, ONNX and int8, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.batches import Batch, ClassificationDataset
from ..data.tasks import Task
from ..metrics import agreement, score_function
from ..models.hub_layout import HubModel
from ..serve.export import FILES, OnnxModel, size_on_disk
from ..training.classification import predict_logits, predictions_from_logits, score
from .measure import alternate
from .statistics import crossed_scores, gap_interval, paired_shares

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel


def random_batch(model: HubModel | PreTrainedModel, length: int) -> Batch:
    """One sequence of `length` random tokens: time does not depend on which."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    # Transformers' DistilBERT has no token types, and no key that says so.
    types = getattr(model.config, "type_vocab_size", 0)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | (
        {"token_type_ids": torch.zeros_like(ids)} if types else {}
    )


def latency_by_length(
    models: Mapping[str, HubModel | PreTrainedModel], lengths: list[int], repeats: int
) -> list[dict[str, float]]:
    """Median milliseconds of each model at batch size 1, called in turn; a row for each length.

    `<first>_over_<name>` is the median ratio of neighbouring calls: above 1, `name` is faster.
    """
    (first, *others), rows = models, []
    for length in tqdm(lengths, desc="timing", unit="length", leave=False):
        batch = random_batch(models[first], length)
        with torch.inference_mode():
            taken = alternate(
                {name: partial(model, **batch) for name, model in models.items()}, repeats, warmup=3
            )
        row: dict[str, float] = {"length": length}
        row |= {f"{n}_milliseconds": round(1e3 * float(np.median(t)), 3) for n, t in taken.items()}
        for name in others:
            ratio = float(np.median(taken[first] / taken[name]))
            row[f"{first}_over_{name}"] = round(ratio, 3)
        rows.append(row)
    return rows


def load_variants(model: HubModel, folder: Path) -> dict[str, HubModel]:
    """A model in PyTorch, as read from disk, and both its graphs, reloaded from `folder`."""
    graphs = {f"onnx_{name}": OnnxModel(folder, name) for name in FILES}
    return {"torch_fp32": model, **graphs}


def size_of_variants(checkpoint: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Bytes on disk and parameters of the same three, counted in the files."""
    graphs = {f"onnx_{name}": size_on_disk(folder / file) for name, file in FILES.items()}
    return {"torch_fp32": size_on_disk(checkpoint), **graphs}


def score_variants(
    variants: dict[str, HubModel],
    dataset: ClassificationDataset,
    references: np.ndarray,
    task: Task,
) -> dict[str, dict]:
    """The task's metrics of each variant, and how far it is from the first (PyTorch's fp32).

    `gap`: its primary metric minus the first's, with the interval over the same examples; not of
    the first itself. The models have the task's classes in the task's order.
    """
    scores, reference = {}, None
    score_fn = score_function(task.primary, task.num_labels)
    for name, model in variants.items():
        logits = predict_logits(model, dataset, description=name)
        reference = logits if reference is None else reference
        scores[name] = score(logits, references, task)
        scores[name]["largest_logit_difference"] = float(np.abs(logits - reference).max())
        if not task.is_regression:
            scores[name] |= agreement(reference, logits)
        if logits is reference:
            continue
        pair = [predictions_from_logits(each, task) for each in (reference, logits)]
        if task.primary == "accuracy":
            gap = paired_shares(*(each == references for each in pair))
        else:
            gap = gap_interval({task.name: crossed_scores([(*pair, references)], score_fn)})
        scores[name]["gap"] = gap
    return scores
