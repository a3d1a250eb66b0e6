"""Our DistilBERT classifier against transformers': by length, and over STS-B dev in batches."""

import tempfile
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from distilbert_kit.data.batches import ClassificationDataset
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.study.evidence.speed import ratio_of_totals
from distilbert_kit.study.measure import alternate, forward_flops, threads
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.settings import SpeedSettings
from distilbert_kit.training.classification import predict_logits

from .shared import (
    CONFIGS,
    MAKERS,
    classify,
    infer,
    machine_rates,
    median_ratio,
    stsb_pairs,
    thread_counts,
)

PADDED_BATCHES = (8, 32)  # the Trainer's default for evaluation, and a usual one


def same_weights(model: nn.Module) -> nn.Module:
    """The classifier of transformers with the weights of ours."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def measure(recipe: Recipe, draft: Draft) -> str:
    """Our DistilBERT against transformers' in fp32: by length, and over the dev pairs."""
    settings = recipe.speed
    ours = DistilBERTForSequenceClassification(CONFIGS["distilbert"], 2).eval()
    theirs = same_weights(ours)
    dataset, draft.data, texts = stsb_pairs(settings.file_order_pairs)
    draft.metrics = {
        "weights": "random, the same on both sides",
        "head": "sequence classification, 2 labels",
        "text": "STS-B dev" if texts else "length profile",
        "pairs": len(dataset),
        "length_repeats": settings.length_repeats,
        "flops_by_length": {
            str(n): {
                by: forward_flops(
                    CONFIGS["distilbert"], [n], head="classification", trimmed=by == "ours"
                )
                for by in MAKERS
            }
            for n in settings.lengths
        },
    }
    worst = []
    for count in thread_counts():
        with threads(count):
            by_length = measure_lengths(ours, theirs, settings)
            draft.extra[f"threads_{count}"] = {"by_length": by_length} | machine_rates()
            worst.append(min(row["classifier"]["ratio"] for row in by_length))
    draft.extra["file_order"], draft.metrics["padding"], error = measure_file_order(
        ours, theirs, dataset, settings
    )
    draft.extra["largest_logit_difference"] = error
    passes = draft.extra["file_order"]
    found = ", ".join(
        f"{ratio_of_totals(passes[f'padded_{size}_seconds'], passes['ours_seconds'])['ratio']:.2f}"
        for size in PADDED_BATCHES
    )
    return f"transformers / ours by length at least {min(worst):.2f}; padded batches {found}"


def measure_lengths(ours: nn.Module, theirs: nn.Module, settings: SpeedSettings) -> list[dict]:
    """Median latency and ratio at each length, one sequence without padding."""

    rows = []
    generator = torch.Generator().manual_seed(0)
    for length in settings.lengths:
        ids = torch.randint(1000, 30000, (1, length), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        taken = alternate(
            {
                "ours": partial(classify, ours, batch),
                "transformers": partial(classify, theirs, batch),
                "ours_encoder": partial(infer, ours.encoder, batch),
                "transformers_encoder": partial(infer, theirs.distilbert, batch),
            },
            settings.length_repeats,
            warmup=3,
        )
        row: dict = {"length": length}
        for name, values in taken.items():
            row[f"{name}_milliseconds"] = round(1e3 * float(np.median(values)), 3)
        row["classifier"] = median_ratio(taken["transformers"], taken["ours"])
        row["encoder"] = median_ratio(taken["transformers_encoder"], taken["ours_encoder"])
        rows.append(row)
    return rows


def measure_file_order(
    ours: nn.Module, theirs: nn.Module, dataset: ClassificationDataset, settings: SpeedSettings
) -> tuple[dict, dict, float]:
    """A pass over the pairs: our length buckets against padded batches in file order."""

    def padded(size: int) -> np.ndarray:
        logits = []
        for start in range(0, len(dataset), size):
            items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            logits.append(classify(theirs, dataset.collate(items)))
        return torch.cat(logits).numpy()

    functions = {"ours": partial(predict_logits, ours, dataset)}
    functions |= {f"padded_{size}": partial(padded, size) for size in PADDED_BATCHES}
    error = float(np.abs(functions["ours"]() - functions[f"padded_{PADDED_BATCHES[0]}"]()).max())
    taken = alternate(functions, settings.passes, warmup=0)
    found: dict = {f"{name}_seconds": values.round(4).tolist() for name, values in taken.items()}
    padding = {"real_tokens": int(dataset.lengths.sum())}
    for size in PADDED_BATCHES:
        name = f"padded_{size}"
        starts = range(0, len(dataset), size)
        widths = [dataset.lengths[i : i + size] for i in starts]
        padding[f"{name}_tokens"] = int(sum(part.max() * len(part) for part in widths))
    return found, padding, error
