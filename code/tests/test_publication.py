"""From hand-made records to claims, notebooks, report and poster."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from distilbert_kit import evaluation, evidence, experiment, recipes
from distilbert_kit.paths import CODE, NOTEBOOKS, PAPER, RECIPES
from distilbert_kit.recipes import load_recipe
from distilbert_kit.records import recording
from distilbert_kit.tasks import get_task

sys.path.insert(0, str(CODE))
import benchmark
import build_report
import claims

RECIPE = yaml.safe_load((RECIPES / "quick.yaml").read_text()) | {
    "name": "tiny recipe",
    "seeds": [0, 1],
}
SIZES = {  # config.json of bert-base-uncased and distilbert-base-uncased, counted by hand
    "bert": {"parameters_embeddings": 23_837_184, "parameters_pooler": 590_592, "layers": 12},
    "distilbert": {"parameters_embeddings": 23_835_648, "parameters_pooler": 0, "layers": 6},
}
RATES = {"fp32_gflops": 100.0, "bf16_gflops": 200.0}


def fill_extract(draft, cell, rng):
    draft.metrics = {"parameters": 17_000_000, "layers": [0, 2, 4], "copied": "all"}


def fill_finetune(draft, cell, rng):
    """Predictions of which the teacher gets about 90 % right, the student 80 %."""
    task, count = get_task(cell.identity["task"]), 120
    draft.metrics["train_examples"] = 64
    draft.metrics["history"] = [
        {"update": u, "loss": 0.7 / u, "learning_rate": 1e-4} for u in (1, 2, 3)
    ]
    draft.extra = {"train_seconds": 1.0, "train_examples_per_second": 64.0}
    references = np.arange(count) % task.num_labels
    skill = 0.9 if cell.identity["model"] == "teacher" else 0.8
    for split, path in zip(task.eval_splits, cell.outputs, strict=True):
        wrong = rng.random(count) > skill
        logits = np.eye(task.num_labels)[(references + wrong) % task.num_labels]
        draft.metrics[split] = evaluation.score(logits, references, task) | {"truncated": 0}
        columns = {"row": np.arange(count), "reference": references}
        columns |= {"prediction": logits.argmax(1)}
        columns |= {f"logit_{i}": logits[:, i] for i in range(task.num_labels)}
        if task.dataset.startswith("embedded/"):
            columns["phenomenon"] = np.where(np.arange(count) % 3, "negation", "plain")
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(path, index=False)


def fill_benchmark(draft, cell, rng):
    {
        "size_speed": fill_size_speed,
        "inference_speed": fill_inference,
        "training_speed": fill_training,
    }[cell.name](draft, cell, rng)


def fill_size_speed(draft, cell, rng):
    lengths = np.sort(rng.integers(8, 80, 60))
    size = {}
    taken = {}
    for model, counts in SIZES.items():
        layers = counts["layers"]
        for maker in benchmark.MAKERS:
            size[f"{model}/{maker}"] = counts | {
                "parameters_per_layer": 7_087_872,
                "parameters": counts["parameters_embeddings"] + layers * 7_087_872 + 600_000,
                "bytes_fp32": 4_000_000 * layers,
                "bytes_fp16": 2_000_000 * layers,
            }
            seconds = 1e-4 * (layers * (2 + lengths / 20) + 1) * (1.1 - 0.1 * (maker == "ours"))
            taken[f"{model}/{maker}"] = seconds * rng.lognormal(0, 0.05, (3, len(lengths)))
    draft.metrics = {
        "weights": "random",
        "head": "sequence classification, 2 labels",
        "text": "length profile",
        "pairs": len(lengths),
        "share_of_pairs": len(lengths) / 1500,
        "passes": 3,
        "mean_tokens": float(lengths.mean()),
        "longest": int(lengths.max()),
        "size": size,
    } | benchmark.count_flops(lengths)
    for threads in (1, 2):
        draft.extra[f"threads_{threads}"] = benchmark.summarise_passes(taken, lengths) | RATES


def fill_inference(draft, cell, rng):
    by_length = []
    for length in (16, 32, 64, 128, 256, 512):
        times = {name: rng.lognormal(0, 0.1, 9) * length * 1e-4 for name in "abcd"}
        row = {"length": length}
        for name, values in zip(
            ("ours", "transformers", "ours_encoder", "transformers_encoder"),
            times.values(),
        ):
            row[f"{name}_milliseconds"] = round(1e3 * float(np.median(values)), 3)
        row["classifier"] = benchmark.median_ratio(times["b"], times["a"])
        row["encoder"] = benchmark.median_ratio(times["d"], times["c"])
        by_length.append(row)
    draft.metrics = {"text": "length profile", "pairs": 60, "length_repeats": 9}
    draft.metrics["padding"] = {"real_tokens": 900, "padded_8_tokens": 1300, "padded_32_tokens": 1600}
    draft.extra = {f"threads_{n}": {"by_length": by_length} | RATES for n in (1, 2)}
    ratio = benchmark.median_ratio(np.array([2.0, 2.1, 2.2]), np.array([1.0, 1.1, 1.0]))
    draft.extra["file_order"] = {
        "ours_seconds": [1.0, 1.1, 1.0],
        "padded_8_seconds": [2.0, 2.1, 2.2],
        "padded_32_seconds": [2.0, 2.1, 2.2],
        "padded_8_over_ours": ratio,
        "padded_32_over_ours": ratio,
    }
    draft.extra["largest_logit_difference"] = 1e-6


def fill_training(draft, cell, rng):
    names = ("ours", "ours_batch_32", "trainer_fp32", "trainer_bf16", "trainer_bf16_grouped")
    taken = {name: list(rng.lognormal(1 + (name != "ours"), 0.1, 3)) for name in names}

    class Rows:
        lengths = np.full(64, 20)

        def __len__(self):
            return 64

    draft.metrics, draft.extra = benchmark.summarise_training(
        taken, {name: [700, 705, 710] for name in names}, Rows(), 872, dict(RATES)
    )


def write_evidence(recipe):
    """A record for every cell of a recipe, with invented but coherent contents."""
    rng = np.random.default_rng(0)
    fill = {"extract": fill_extract, "finetune": fill_finetune, "benchmark": fill_benchmark}
    for cell in experiment.evidence_cells(recipe):
        with recording(cell.record, **cell.provenance) as draft:
            fill[cell.stage](draft, cell, rng)
