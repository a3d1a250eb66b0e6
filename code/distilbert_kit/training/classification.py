"""Classification and regression: data, objective, predictions and scores."""

import datasets
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from ..data.batches import ClassificationDataset, model_inputs
from ..data.sources import DataUsed
from ..data.tables import check_task_rows, load_table
from ..data.tasks import OF_CLASSES, Task
from ..errors import UserError
from ..losses import classification_loss_sum, response_distillation
from ..metrics import compute_confusion_matrix, compute_metrics
from ..models.hub_layout import HubModel, plain_label
from ..settings import SoftTargets, TextSettings
from .inference import run_in_buckets
from .objectives import Objective, check_single_label, fine_tuning_objective


def load_task_split(
    task: Task,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: TextSettings,
) -> tuple[ClassificationDataset, datasets.Dataset, DataUsed]:
    """One split of a task, tokenised, with the table it came from and what was read."""
    table, used = load_table(task.dataset, split, (*task.text_columns, task.label_column))
    check_task_rows(table, task, f"{task.dataset}/{split}")
    columns = [table[column][:] for column in task.text_columns]
    texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    labels, cut = table[task.label_column][:], (settings.max_length, settings.truncation)
    return ClassificationDataset(texts, labels, tokenizer, *cut), table, used


def classification_objective(targets: SoftTargets | None = None) -> Objective:
    """Classification or regression, under a teacher if `targets`.

    The loader's data set then holds what the teacher says of it:
    `loader.dataset.teacher_logits = predict_logits(teacher, loader.dataset)`.
    """
    return fine_tuning_objective(
        lambda output, batch: classification_loss_sum(output.logits, batch["labels"]),
        lambda output, batch, temperature: response_distillation(
            output.logits, batch["teacher_logits"], temperature
        ),
        targets,
    )


CLASSIFICATION = classification_objective()


def predict_logits(model: HubModel, dataset: ClassificationDataset, **arguments) -> np.ndarray:
    """Logits [N, C] (float32) in the order of the data set; arguments of `run_in_buckets`."""
    logits = np.empty((len(dataset), model.num_labels), dtype=np.float32)

    def receive(indices: list[int], output: ModelOutput) -> None:
        logits[indices] = output["logits"].float().cpu().numpy()

    run_in_buckets(model, dataset, receive, **arguments)
    return logits


def predictions_from_logits(logits: np.ndarray, task: Task) -> np.ndarray:
    """Class numbers [N], or the scores themselves for regression."""
    return logits[:, 0] if task.is_regression else logits.argmax(axis=1)


def score(logits: np.ndarray, references: np.ndarray, task: Task) -> dict:
    """The task's metrics, and the confusion matrix (rows: reference) of a classification."""
    predictions = predictions_from_logits(logits, task)
    metrics = compute_metrics(task.metrics, predictions, references, task.num_labels)
    if task.is_regression:
        return metrics
    confusion = compute_confusion_matrix(predictions, references, task.num_labels)
    return metrics | {"confusion_matrix": confusion}


def evaluate_classification_metrics(model: HubModel, loader: DataLoader) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of a classifier on a loader with labels.

    Batches go to the device where the model is: on a GPU after training there. Raises UserError
    for a multi-label model.
    """
    check_single_label(model)
    predictions, references = [], []
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            references.append(batch["labels"])
            inputs = {name: value.to(device) for name, value in model_inputs(batch).items()}
            predictions.append(model(**inputs).logits.argmax(-1).cpu())
    return compute_metrics(
        OF_CLASSES,
        torch.cat(predictions).numpy(),
        torch.cat(references).numpy(),
        model.num_labels,
    )


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


def label_order(
    model_labels: tuple[str, ...], task: Task, where: str, multi_label: bool = False
) -> list[int]:
    """Columns of the model's logits in the task's label order, matched by name.

    Checkpoints without names (LABEL_0 …) are taken in the task's own order. Raises UserError
    when the number of labels or their names do not fit, and for a multi-label model.
    """
    if multi_label:
        raise UserError(
            f"{where}: a multi-label model, but {task.name} has one label an example; give a "
            "single-label checkpoint"
        )
    if len(model_labels) != task.num_labels:
        raise UserError(
            f"{where}: its head has {len(model_labels)} labels, {task.name} has "
            f"{task.num_labels}; give a checkpoint fine-tuned on {task.name}"
        )
    names = [plain_label(label) for label in model_labels]
    if task.is_regression or all(name.startswith("label_") for name in names):
        return list(range(task.num_labels))
    if set(names) != set(task.labels):
        raise UserError(
            f"{where}: its labels are {', '.join(model_labels)}, those of {task.name} are "
            f"{', '.join(task.labels)}; give a checkpoint fine-tuned on {task.name}, or rename "
            "them in its config.json"
        )
    return [names.index(label) for label in task.labels]
