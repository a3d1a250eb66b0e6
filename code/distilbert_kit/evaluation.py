"""Predictions and scores of a trained model on a data set."""

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import ModelOutput

from .data import ClassificationDataset, LengthBatchSampler, create_dataloader, model_inputs
from .losses import masked_lm_loss
from .memory import keeping_freed_memory
from .metrics import compute_confusion_matrix, compute_metrics
from .records import write_atomically
from .tasks import Task


@keeping_freed_memory()
def run_in_buckets(
    model: nn.Module,
    dataset: Dataset,
    receive: Callable[[list[int], ModelOutput], None],
    *,
    precision: str = "fp32",
    batch_tokens: int | None = None,
    description: str = "predicting",
) -> None:
    """Run a model over a data set in length buckets; `receive` gets row numbers and outputs.

    `batch_tokens` padded tokens make a batch: by default few on a CPU, where a batch's states
    should stay in the cache, and many on a GPU.
    """
    # An ONNX graph (deploy.py) shows no parameters; it runs on the CPU.
    device = next(model.parameters(), torch.empty(0)).device
    batch_tokens = batch_tokens or (1024 if device.type == "cpu" else 32768)
    sampler = LengthBatchSampler(dataset.lengths, len(dataset), batch_tokens, shuffle=False)
    bar = tqdm(total=len(dataset), desc=description, unit="ex", mininterval=1, leave=False)
    model.eval()
    plan = list(sampler)
    with torch.inference_mode(), autocast(device, precision):
        for indices, batch in zip(plan, create_dataloader(dataset, plan), strict=True):
            inputs = {name: value.to(device) for name, value in model_inputs(batch).items()}
            receive(indices, model(**inputs))
            bar.update(len(indices))
    bar.close()


def predict_logits(model: nn.Module, dataset: ClassificationDataset, **arguments) -> np.ndarray:
    """Logits [N, C] (float32) in the order of the data set; arguments of `run_in_buckets`."""
    logits = np.empty((len(dataset), model.num_labels), dtype=np.float32)

    def receive(indices: list[int], output: ModelOutput) -> None:
        logits[indices] = output.logits.float().cpu().numpy()

    run_in_buckets(model, dataset, receive, **arguments)
    return logits


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context for "fp32" (off), "bf16" or "fp16" on a device."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def predictions_from_logits(logits: np.ndarray, task: Task) -> np.ndarray:
    """Class numbers [N], or the scores themselves for regression."""
    return logits[:, 0] if task.is_regression else logits.argmax(axis=1)


def score(logits: np.ndarray, references: np.ndarray, task: Task) -> dict:
    """The task's metrics, and the confusion matrix (rows: reference) of a classification."""
    predictions = predictions_from_logits(logits, task)
    metrics = compute_metrics(task.metrics, predictions, references, task.num_labels)
    if not task.is_regression:
        metrics["confusion_matrix"] = compute_confusion_matrix(
            predictions, references, task.num_labels
        )
    return metrics


def evaluate_classification_metrics(model: nn.Module, loader: DataLoader) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of a classifier on a loader with labels."""
    predictions, references = [], []
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            references.append(batch.pop("labels"))
            predictions.append(model(**batch).logits.argmax(-1))
    return compute_metrics(
        ("accuracy", "precision", "recall", "f1"),
        torch.cat(predictions).numpy(),
        torch.cat(references).numpy(),
        model.num_labels,
    )


def compute_mlm_loader_loss(model: nn.Module, loader: DataLoader) -> float:
    """Mean masked-LM loss over all masked tokens of a loader (not the mean of batch means)."""
    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            labels = batch.pop("labels")
            total += float(masked_lm_loss(model(**batch).logits.flatten(0, 1), labels.flatten()))
            count += int((labels != -100).sum())
    return total / max(count, 1)


def prediction_frame(logits: np.ndarray, table: datasets.Dataset, task: Task) -> pd.DataFrame:
    """Per-example rows: row, reference, prediction, logit_0 …, and tags of the data."""
    columns = {
        "row": np.arange(len(logits)),
        "reference": np.asarray(table[task.label_column]),
        "prediction": predictions_from_logits(logits, task),
    }
    columns |= {f"logit_{i}": logits[:, i] for i in range(logits.shape[1])}
    if "phenomenon" in table.column_names:
        columns["phenomenon"] = table["phenomenon"][:]
    return pd.DataFrame(columns)


def save_predictions(path: Path, frame: pd.DataFrame) -> None:
    """Write per-example rows as parquet, atomically."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression="zstd", index=False)
    write_atomically(path, buffer.getvalue())
