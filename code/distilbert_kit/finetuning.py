"""What fine-tuning and evaluation need of each kind of task, and the teacher of a task."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .data import load_task_split
from .errors import UserError
from .evaluation import predict_logits, prediction_frame, save_predictions, score
from .model import DistilBERTForQuestionAnswering, DistilBERTForSequenceClassification
from .question_answering import (
    load_question_split,
    predict_spans,
    score_answers,
    span_objective,
)
from .records import Draft, content_key, write_atomically
from .settings import TextSettings, WindowSettings
from .tasks import Task
from .training import classification_objective, create_accelerator
from .weights import model_sha256, read_safetensors, resolve_checkpoint


@dataclass(frozen=True)
class TaskKind:
    """The parts of fine-tuning that differ between kinds of tasks.

    `load(task, split, tokenizer, settings)` gives a data set, its table and what was read;
    `objective(targets)` what is minimised, under a teacher if `targets` (SoftTargets);
    `predict(model, dataset, precision=…)` logits as an array; `score(logits, dataset, table, task)`
    the metrics and a frame with a row for each example.
    """

    model: type[nn.Module]
    texts: type[TextSettings]
    load: Callable
    objective: Callable
    predict: Callable
    score: Callable


KINDS = {
    "classification": TaskKind(
        model=DistilBERTForSequenceClassification,
        texts=TextSettings,
        load=lambda task, split, tokenizer, settings: load_task_split(
            task, split, tokenizer, settings.max_length, settings.truncation
        ),
        objective=classification_objective,
        predict=predict_logits,
        score=lambda logits, dataset, table, task: (
            score(logits, np.asarray(table[task.label_column]), task),
            prediction_frame(logits, table, task).assign(tokens=dataset.lengths),
        ),
    ),
    "question_answering": TaskKind(
        model=DistilBERTForQuestionAnswering,
        texts=WindowSettings,
        load=load_question_split,
        objective=span_objective,
        predict=predict_spans,
        score=score_answers,
    ),
}


def with_new_head(checkpoint: str | Path, task: Task) -> nn.Module:
    """A model for fine-tuning on a task; a head that the checkpoint lacks is drawn at random."""
    classes = {"num_labels": task.num_labels, "labels": task.labels}
    arguments = classes if task.kind == "classification" else {}
    return KINDS[task.kind].model.from_pretrained(checkpoint, **arguments)


def fine_tuned(checkpoint: str | Path, task: Task) -> nn.Module:
    """A model that was fine-tuned on a task, its classes in the task's order.

    Raises UserError for a checkpoint without a trained head or with other labels.
    """
    model = KINDS[task.kind].model.from_pretrained(checkpoint, require_head=True)
    if task.kind == "classification":
        order = label_order(model.labels, task, str(checkpoint))
        for parameter in model.classifier.parameters():
            parameter.data = parameter.data[order]
    return model


def label_order(model_labels: tuple[str, ...], task: Task, where: str) -> list[int]:
    """Columns of the model's logits in the task's label order, matched by name.

    Checkpoints without names (LABEL_0 …) are taken in the task's own order. Raises UserError
    when the number of labels or their names do not fit.
    """
    if len(model_labels) != task.num_labels:
        raise UserError(
            f"{where}: its head has {len(model_labels)} labels, {task.name} has "
            f"{task.num_labels}; give a checkpoint fine-tuned on {task.name}"
        )
    names = [label.lower().replace("-", "_").replace(" ", "_") for label in model_labels]
    if task.is_regression or all(name.startswith("label_") for name in names):
        return list(range(task.num_labels))
    if set(names) != set(task.labels):
        raise UserError(
            f"{where}: its labels are {', '.join(model_labels)}, those of {task.name} are "
            f"{', '.join(task.labels)}; give a checkpoint fine-tuned on {task.name}, or rename "
            "them in its config.json"
        )
    return [names.index(label) for label in task.labels]


def evaluate(
    model: nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    settings: TextSettings,
    precision: str,
    draft: Draft,
    predictions: Callable[[str], Path] | None = None,
) -> None:
    """Score a model on every evaluation split: metrics to the draft, rows to predictions(split)."""
    kind = KINDS[task.kind]
    for split in task.eval_splits:
        dataset, table, used = kind.load(task, split, tokenizer, settings)
        started = time.perf_counter()
        logits = kind.predict(model, dataset, precision=precision)
        metrics, frame = kind.score(logits, dataset, table, task)
        seconds = time.perf_counter() - started
        draft.data.append(used)
        draft.metrics[split] = metrics | dataset.counts
        draft.extra[f"{split}_examples_per_second"] = round(len(table) / seconds, 1)
        if predictions:
            save_predictions(predictions(split), frame)


def teacher_logits(
    checkpoint: str | Path, task: Task, dataset: Dataset, vocabulary: int, precision: str
) -> np.ndarray:
    """What a teacher fine-tuned on the task says of a data set, in evaluation mode.

    Computed once and kept beside the teacher's weights, under a hash of these weights, the tokens
    and the precision: all students and seeds share it. Raises UserError as `fine_tuned`, and for
    a teacher of another vocabulary.
    """
    folder = resolve_checkpoint(checkpoint)
    teacher = fine_tuned(folder, task)  # also refuses what cannot teach, cached or not
    if teacher.config.vocab_size != vocabulary:
        raise UserError(
            f"{checkpoint}: the teacher has {teacher.config.vocab_size:,} tokens and the student "
            f"{vocabulary:,}; use models of one vocabulary"
        )
    key = content_key([model_sha256(folder), _tokens_sha256(dataset), precision])
    path = folder / f"logits-{key}.safetensors"
    if path.is_file():
        return read_safetensors(path)["logits"].numpy()
    device = create_accelerator(precision).device
    logits = KINDS[task.kind].predict(
        teacher.to(device), dataset, precision=precision, description="teaching"
    )
    if os.access(folder, os.W_OK):  # a shared teacher may be read-only
        write_atomically(path, safetensors.torch.save({"logits": torch.from_numpy(logits)}))
    return logits


def _tokens_sha256(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(np.asarray(dataset[index]["input_ids"], dtype=np.int32).tobytes())
    return digest.hexdigest()
