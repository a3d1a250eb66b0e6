"""What fine-tuning and evaluation need of each kind of task, and the teacher of a task."""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from transformers import PreTrainedTokenizerBase

from ..data.batches import LengthBatchSampler, TokenDataset, create_dataloader, model_inputs
from ..data.sources import DataUsed
from ..data.tasks import Task
from ..errors import UserError
from ..files import content_key, logits_name, write_once
from ..models.checkpoints import (
    Pretrained,
    model_sha256,
    read_checked,
    resolve_checkpoint,
    with_hash,
)
from ..models.hub_layout import HubModel, read_config
from ..models.model import DistilBERTForQuestionAnswering, DistilBERTForSequenceClassification
from ..models.tokenizers import get_tokenizer
from ..models.vocabulary import check_same_vocabulary
from ..settings import FinetuneSettings, SoftTargets, TextSettings, WindowSettings
from .checkpointing import TrainingResult
from .classification import (
    classification_objective,
    label_order,
    load_task_split,
    predict_logits,
    prediction_frame,
    score,
)
from .loop import train, training_device
from .precision import usable_precision
from .question_answering import load_question_split, predict_spans, score_answers, span_objective


@dataclass(frozen=True)
class TaskKind:
    """The parts of fine-tuning that differ between kinds of tasks.

    `load(task, split, tokenizer, settings)` gives a data set, its table and what was read;
    `objective(targets)` what is minimised, under a teacher if `targets` (SoftTargets);
    `predict(model, dataset, precision=…)` logits as an array; `score(logits, dataset, table, task)`
    the metrics and a frame with a row for each example.
    """

    model: type[Pretrained]
    texts: type[TextSettings]
    load: Callable
    objective: Callable
    predict: Callable
    score: Callable


KINDS = {
    "classification": TaskKind(
        model=DistilBERTForSequenceClassification,
        texts=TextSettings,
        load=load_task_split,
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


def check_length(checkpoint: str | Path, settings: TextSettings, name: str) -> None:
    """Refuse texts longer than a model takes, before they are read; `name`: what to call it."""
    read_config(resolve_checkpoint(checkpoint)).shape.text_length(name, settings.max_length)


def with_new_head(checkpoint: str | Path, task: Task) -> Pretrained:
    """A model for fine-tuning on a task; a head that the checkpoint lacks is drawn at random."""
    classes = {"num_labels": task.num_labels, "labels": task.labels}
    arguments = classes if task.kind == "classification" else {}
    return KINDS[task.kind].model.from_pretrained(checkpoint, **arguments)


def fine_tuned(checkpoint: str | Path, task: Task) -> Pretrained:
    """A model that was fine-tuned on a task, its classes in the task's order.

    Raises UserError for a checkpoint without a trained head, with other labels, or multi-label.
    """
    model = KINDS[task.kind].model.from_pretrained(checkpoint, require_head=True)
    if isinstance(model, DistilBERTForSequenceClassification):
        order = label_order(model.labels, task, str(checkpoint), model.multi_label)
        for parameter in model.classifier.parameters():
            parameter.data = parameter.data[order]
        model.labels = tuple(model.labels[index] for index in order)
    return model


def fine_tune(
    start: str | Path,
    task: Task,
    dataset: TokenDataset,
    settings: FinetuneSettings,
    seed: int,
    targets: SoftTargets | None = None,
    *,
    description: str = "fine-tuning",
    checkpoints: Path | None = None,
    identity: str | None = None,
) -> tuple[Pretrained, TrainingResult]:
    """Fine-tune a checkpoint on the examples of a task; the seed decides head, order and dropout.

    With `targets` under a teacher, whose logits the data set holds. `checkpoints` and `identity`
    are those of `loop.train`: state is kept every ten minutes.
    """
    torch.manual_seed(seed)  # the new head
    model = with_new_head(start, task)
    sampler = LengthBatchSampler(dataset.lengths, settings.batch_size, settings.batch_tokens)
    loader, objective = create_dataloader(dataset, sampler), KINDS[task.kind].objective(targets)
    result = train(
        model,
        loader,
        objective,
        settings,
        seed=seed,
        description=description,
        checkpoints=checkpoints,
        checkpoint_every=None,
        identity=identity,
    )
    return model, result


@dataclass(frozen=True)
class Evaluation:
    """A model on one split of a task: metrics, a row for each example, what was read, speed."""

    metrics: dict
    frame: pd.DataFrame
    used: DataUsed
    examples_per_second: float


def evaluate(
    model: HubModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    settings: TextSettings,
    precision: str,
) -> dict[str, Evaluation]:
    """Score a model on every evaluation split of a task, by split."""
    kind, evaluations = KINDS[task.kind], {}
    for split in task.eval_splits:
        dataset, table, used = kind.load(task, split, tokenizer, settings)
        started = time.perf_counter()
        logits = kind.predict(model, dataset, precision=precision)
        metrics, frame = kind.score(logits, dataset, table, task)
        seconds = time.perf_counter() - started
        evaluations[split] = Evaluation(
            metrics | dataset.counts, frame, used, round(len(table) / seconds, 1)
        )
    return evaluations


def teacher_logits(
    checkpoint: str | Path,
    task: Task,
    dataset: TokenDataset,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
) -> np.ndarray:
    """What a teacher fine-tuned on the task says of a data set, in evaluation mode.

    Computed once and kept beside the teacher's weights, under a hash of these weights, the inputs
    and the precision: all students and seeds share it; a damaged file is made again. Raises
    UserError as `fine_tuned`, and for a teacher of another vocabulary than that of `tokenizer`,
    which made the data set, or that reads pairs with other token types.
    """
    folder = resolve_checkpoint(checkpoint)
    teacher = fine_tuned(folder, task)  # also refuses what cannot teach, cached or not
    theirs = get_tokenizer(folder)
    check_same_vocabulary(theirs, tokenizer, str(checkpoint))
    typed = {"token_type_ids" in both.model_input_names for both in (theirs, tokenizer)}
    if teacher.config.type_vocab_size and len(task.text_columns) > 1 and len(typed) > 1:
        raise UserError(
            f"{checkpoint}: of the teacher's tokenizer and the student's, only one gives token "
            "types, which tell the texts of a pair apart; save the teacher's with both"
        )
    precision = usable_precision(precision)
    key = content_key([model_sha256(folder), _inputs_sha256(dataset), precision])
    path = folder / logits_name(key)
    if path.is_file():
        try:
            return read_checked(path)[0]["logits"].numpy()
        except UserError:
            with suppress(OSError):
                path.unlink()
    teacher.to(training_device(precision))
    predict = KINDS[task.kind].predict
    logits = predict(teacher, dataset, precision=precision, description="teaching")
    if os.access(folder, os.W_OK):  # a shared teacher may be read-only
        tensors = {"logits": torch.from_numpy(logits)}
        write_once(path, safetensors.torch.save(tensors, with_hash(tensors)))
        return read_checked(path)[0]["logits"].numpy()  # the first of several seeds wrote them
    return logits


def _inputs_sha256(dataset: TokenDataset) -> str:
    """Hash of all that a model reads of each example."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        for name, values in model_inputs(dataset.collate([dataset[index]])).items():
            digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()
