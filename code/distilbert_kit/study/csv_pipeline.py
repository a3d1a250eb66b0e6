"""From labelled texts to four classifiers: made, reloaded, scored, timed, shown in a table.

The teacher; a student of some of its layers, trained alike without it; the same student distilled
on the task; and that one in int8.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.batches import ClassificationDataset
from ..data.tasks import Task
from ..metrics import agreement
from ..models.initialisation import choose_layers, extract_student
from ..models.model import (
    DistilBERTForMaskedLM,
    DistilBERTForSequenceClassification,
)
from ..serve.export import FILES, OnnxModel, save_onnx
from ..settings import FinetuneSettings, SoftTargets
from ..training.classification import predict_logits, score
from ..training.fine_tuning import fine_tune
from .measure import alternate_over
from .statistics import wilson_interval

MODELS = {
    "teacher": "teacher",
    "student-undistilled": "student, without the teacher",
    "student": "student, distilled",
    "student-int8": "student, distilled, int8",
}
TIMED_TEXTS = 100


def cut_student(teacher: str, layers: int | None, folder: Path) -> list[int]:
    """Write a student of evenly chosen teacher layers, not trained; returns the layers."""
    source = DistilBERTForMaskedLM.from_pretrained(teacher)
    depth = source.config.num_layers
    chosen = choose_layers("even", depth, layers)
    extract_student(source, chosen).save_pretrained(folder)
    return chosen


def make_models(
    start: str,
    layers: int | None,
    dataset: ClassificationDataset,
    task: Task,
    settings: FinetuneSettings,
    targets: SoftTargets,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    output: Path,
) -> None:
    """Fine-tune the teacher from `start`, distil, quantise; save the four models under `output`.

    The student has `layers` of the teacher's layers, half of them by default.
    """
    tune = partial(fine_tune, task=task, dataset=dataset, settings=settings, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        student_start = Path(folder) / "student"
        chosen = cut_student(start, layers, student_start)
        print(f"student: teacher layers {', '.join(map(str, chosen))}")
        teacher, _ = tune(start, description="teacher")
        teacher.save_pretrained(output / "teacher", tokenizer)
        plain, _ = tune(student_start, description="student-undistilled")
        plain.save_pretrained(output / "student-undistilled", tokenizer)
        # Once for all epochs, without dropout.
        dataset.teacher_logits = predict_logits(
            teacher, dataset, precision=settings.precision, description="teaching"
        )
        student, _ = tune(student_start, targets=targets, description="student")
        student.save_pretrained(output / "student", tokenizer)
        save_onnx(student.cpu(), output / "student-int8", tokenizer)
        (output / "student-int8" / FILES["fp32"]).unlink()  # the student is there already


def load_models(folder: Path) -> dict[str, nn.Module]:
    """The four models, reloaded."""
    return {
        name: OnnxModel(folder / name)
        if name.endswith("int8")
        else DistilBERTForSequenceClassification.from_pretrained(folder / name, require_head=True)
        for name in MODELS
    }


def latencies(models: dict[str, nn.Module], dataset: ClassificationDataset) -> dict[str, float]:
    """Median milliseconds for a text, one by one, over texts spread evenly by length."""
    by_length = np.argsort(dataset.lengths, kind="stable")
    places = np.linspace(0, len(dataset) - 1, min(TIMED_TEXTS, len(dataset))).round().astype(int)
    batches = []
    for index in by_length[places]:
        batch = dataset.collate([dataset[index]])
        batches.append({name: batch[name] for name in batch if name != "labels"})
    functions = {n: lambda batch, model=model: model(**batch) for n, model in models.items()}
    with torch.inference_mode():
        alternate_over(functions, batches[:3])
        taken = alternate_over(functions, batches)
    return {name: round(1e3 * float(np.median(t)), 3) for name, t in taken.items()}


def evaluate(
    models: dict[str, nn.Module],
    datasets: dict[str, ClassificationDataset],
    splits: dict[str, pd.DataFrame],
    task: Task,
) -> tuple[dict, pd.DataFrame]:
    """Scores by model and split, and the test predictions with label names and probabilities."""
    metrics: dict[str, dict] = {name: {} for name in models}
    predictions = splits["test"].reset_index()
    for split in ("validation", "test"):
        references = np.asarray(datasets[split].labels)
        found = {}
        for name, model in models.items():
            one_by_one = 1 if name.endswith("int8") else None  # as in use, see deploy.py
            found[name] = predict_logits(
                model, datasets[split], batch_tokens=one_by_one, description=name
            )
            metrics[name][split] = score(found[name], references, task)
        for name in ("student-undistilled", "student"):
            metrics[name][split] |= agreement(found["teacher"], found[name])
        metrics["student-int8"][split] |= agreement(found["student"], found["student-int8"])
    for name, logits in found.items():
        predictions[name] = np.asarray(task.labels)[logits.argmax(axis=1)]
    return metrics, predictions


def results_table(metrics: dict, milliseconds: dict[str, float], rows: int) -> str:
    """One line for each model: size, parameters, test scores, latency."""
    width = max(map(len, MODELS.values()))
    lines = [
        f"{'':{width}}{'MB':>8}{'million':>9}{'accuracy':>10}{'95 %':>14}{'F1':>7}{'ms a text':>11}"
    ]
    for name, title in MODELS.items():
        scores, size = metrics[name]["test"], metrics[name]["size"]
        interval = wilson_interval(round(scores["accuracy"] * rows), rows)
        span = f"{100 * interval['low']:.1f}–{100 * interval['high']:.1f}"
        lines.append(
            f"{title:{width}}{size['bytes'] / 1e6:8.1f}{size['parameters'] / 1e6:9.2f}"
            f"{100 * scores['accuracy']:10.2f}{span:>14}{100 * scores['f1']:7.2f}"
            f"{milliseconds[name]:11.2f}"
        )
    return "\n".join(lines)
