"""From labelled texts to classifiers: made, reloaded, scored, timed, shown in a table.

The teacher; a student of some of its layers, trained alike without it; the same student distilled
on the task; that one in int8; and, where it is asked for, the student distilled from random
weights, which tells what the teacher's layers are worth as a start.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from ..data.batches import ClassificationDataset, evenly_by_length, model_inputs
from ..data.csv import load_labelled_texts
from ..data.sources import DataUsed, rows_sha256
from ..data.tasks import OF_CLASSES, Task
from ..errors import one_line
from ..metrics import agreement, score_function
from ..models.hub_layout import HubModel
from ..models.initialisation import extract_student
from ..models.model import (
    DistilBERTForMaskedLM,
    DistilBERTForSequenceClassification,
)
from ..serve.export import FILES, OnnxModel, save_onnx, size_on_disk
from ..settings import FinetuneSettings, SoftTargets
from ..training.classification import predict_logits, score
from ..training.fine_tuning import fine_tune
from .measure import alternate_over
from .statistics import (
    crossed_scores,
    gap_interval,
    paired_shares,
    score_interval,
    wilson_interval,
)

MODELS = {
    "teacher": "teacher",
    "student-undistilled": "student, without the teacher",
    "student": "student, distilled",
    "student-int8": "student, distilled, int8",
    "student-random": "student, distilled from random weights",
}
TIMED_TEXTS = 100


def add_csv_options(parser: argparse.ArgumentParser) -> None:
    """The options by which a script finds the labelled texts of a CSV, and its output folder."""
    parser.add_argument("--csv", type=Path, required=True, help="with a text and a label column")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--text-column", help="default: guessed from the usual names")
    parser.add_argument("--label-column", help="default: guessed from the usual names")
    parser.add_argument(
        "--drop-missing", action="store_true", help="leave out rows without a text or a label"
    )
    parser.add_argument("--encoding", default="utf-8-sig", help="default: UTF-8")


def read_csv_rows(arguments: argparse.Namespace) -> pd.DataFrame:
    """What `load_labelled_texts` finds by the options of `add_csv_options`."""
    return load_labelled_texts(
        arguments.csv,
        arguments.text_column,
        arguments.label_column,
        arguments.drop_missing,
        arguments.encoding,
    )


def as_task(path: Path, labels: Sequence[str]) -> Task:
    """The classification of the texts of a CSV."""
    return Task(path.stem, path.name, ("text",), tuple(labels), OF_CLASSES)


def rows_used(task: Task, split: str, rows: pd.DataFrame) -> DataUsed:
    """What a record says of the rows of a split."""
    sha256 = rows_sha256(rows.to_dict("records"))
    return DataUsed(name=f"{task.dataset}/{split}", rows=len(rows), sha256=sha256)


def encode(
    splits: dict[str, pd.DataFrame],
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, ClassificationDataset]:
    """The columns `text` and `label` of each split as tokens and the numbers of the labels."""
    number = {label: index for index, label in enumerate(labels)}
    return {
        split: ClassificationDataset(
            part["text"].tolist(), [number[label] for label in part["label"]], tokenizer, max_length
        )
        for split, part in splits.items()
    }


def cut_student(teacher: Path, layers: list[int], folder: Path, random: Path | None) -> None:
    """Write a student of teacher layers, not trained.

    In the folder `random`, if given, one of its shape with random weights.
    """
    student = extract_student(DistilBERTForMaskedLM.from_pretrained(teacher), layers)
    student.save_pretrained(folder)
    if random:
        DistilBERTForMaskedLM(student.config).save_pretrained(random)


def make_models(
    start: Path,
    layers: list[int],
    dataset: ClassificationDataset,
    task: Task,
    settings: FinetuneSettings,
    targets: SoftTargets,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    output: Path,
    random_start: bool = False,
) -> None:
    """Fine-tune the teacher from `start`, distil, quantise; save the models under `output`.

    The student begins with these `layers` of the teacher. With `random_start` one more is distilled
    from random weights. The data set holds the teacher's logits afterwards.
    """
    dataset.teacher_logits = None  # those of the seed before
    tune = partial(fine_tune, task=task, dataset=dataset, settings=settings, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        student_start = Path(folder) / "student"
        random = Path(folder) / "random" if random_start else None
        torch.manual_seed(seed)
        cut_student(start, layers, student_start, random)
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
        if random:
            other, _ = tune(random, targets=targets, description="student-random")
            other.save_pretrained(output / "student-random", tokenizer)


def load_models(folder: Path) -> dict[str, HubModel]:
    """The models that are there, reloaded."""
    return {
        name: OnnxModel(folder / name)
        if name.endswith("int8")
        else DistilBERTForSequenceClassification.from_pretrained(folder / name, require_head=True)
        for name in MODELS
        if (folder / name).exists()
    }


def latencies(models: dict[str, HubModel], dataset: ClassificationDataset) -> dict[str, float]:
    """Median milliseconds for a text, one by one, over texts spread evenly by length."""
    batches = []
    for index in evenly_by_length(dataset.lengths, TIMED_TEXTS):
        batch = dataset.collate([dataset[index]])
        batches.append(model_inputs(batch))
    functions = {n: lambda batch, model=model: model(**batch) for n, model in models.items()}
    with torch.inference_mode():
        alternate_over(functions, batches[:3])
        taken = alternate_over(functions, batches)
    return {name: round(1e3 * float(np.median(t)), 3) for name, t in taken.items()}


def evaluate(
    models: dict[str, HubModel],
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
            found[name] = predict_logits(model, datasets[split], description=name)
            metrics[name][split] = score(found[name], references, task)
        for name in found.keys() - {"teacher"}:
            original = "student" if name.endswith("int8") else "teacher"
            metrics[name][split] |= agreement(found[original], found[name])
    for name, logits in found.items():
        predictions[name] = np.asarray(task.labels)[logits.argmax(axis=1)]
    return metrics, predictions


def run_seeds(
    make: Callable[..., None],
    seeds: Sequence[int],
    datasets: dict[str, ClassificationDataset],
    splits: dict[str, pd.DataFrame],
    task: Task,
    output: Path,
) -> tuple[dict, dict[str, float], pd.DataFrame]:
    """Make, reload and score the models with each seed; those of the first stay in `output`.

    `make`: `make_models`, all but its seed and output given. Returns the metrics of the first
    seed's models with their sizes, their `latencies`, and the test predictions of all seeds.
    """
    first, *others = seeds
    make(seed=first, output=output)
    models = load_models(output)
    metrics, predictions = evaluate(models, datasets, splits, task)
    for name, model in models.items():
        metrics[name]["size"] = size_on_disk(
            model.path if isinstance(model, OnnxModel) else output / name
        )
    milliseconds = latencies(models, datasets["test"])
    answers = [predictions.assign(seed=first)]
    for seed in others:
        with tempfile.TemporaryDirectory() as folder:
            make(seed=seed, output=Path(folder))
            _, predictions = evaluate(load_models(Path(folder)), datasets, splits, task)
        answers.append(predictions.assign(seed=seed))
    return metrics, milliseconds, pd.concat(answers)


def accuracies(predictions: pd.DataFrame) -> dict[str, dict]:
    """Test accuracy of each model over the seeds, and its gap to the distilled student.

    `predictions`: those of `evaluate`, with a column `seed`. The intervals of several seeds are
    over seeds and rows, see `study/statistics.py`. Those of one seed, or where no variance is found
    (all is right), are over rows: Wilson's, and `paired_shares` of the gap.
    """
    groups = [group for _, group in predictions.groupby("seed", sort=False)]
    right = {
        name: [(group[name] == group["label"]).to_numpy() for group in groups]
        for name in predictions.columns.intersection(list(MODELS), sort=False)
    }

    def crossed(*names: str) -> dict:
        runs = [[group[name].to_numpy() for name in (*names, "label")] for group in groups]
        return {"csv": crossed_scores(runs, score_function("accuracy"))}

    found = {}
    for name, shares in right.items():
        interval, gap = score_interval(crossed(name)), gap_interval(crossed("student", name))
        if len(groups) == 1 or not interval["standard_error"]:
            interval = wilson_interval(sum(shares[0]), len(shares[0]))
        if len(groups) == 1 or not gap["standard_error"]:
            gap = paired_shares(right["student"][0], shares[0])
        found[name] = {
            "label": MODELS[name],
            "seeds": [float(np.mean(one)) for one in shares],
            **interval,
            # A t-interval knows no bounds, a share has some.
            "low": max(0.0, interval["low"]),
            "high": min(1.0, interval["high"]),
            "over_student": None if name == "student" else gap,
        }
    return found


def most_frequent(test: pd.DataFrame) -> dict:
    """The label that most test rows have, and their share: the score of one constant answer."""
    shares = test["label"].value_counts(normalize=True)
    return {"label": shares.index[0], "share": float(shares.iloc[0])}


def whose_f1(labels: Sequence[str]) -> str:
    """Whose F1 it is, see `metrics.compute_metrics`."""
    return f"of {one_line(labels[1])!r}" if len(labels) == 2 else "the mean over the labels"


def results_table(metrics: dict, milliseconds: dict[str, float], labels: Sequence[str]) -> str:
    """One line for each model: size, parameters, test accuracy and F1, latency.

    Below, whose F1 it is, the share of the most frequent label, and which models are not shown to
    be above it.
    """
    accuracy = metrics["accuracy"]
    width = max(len(own["label"]) for own in accuracy.values())
    lines = [
        f"{'':{width}}{'MB':>8}{'million':>9}{'accuracy':>10}{'95 %':>14}{'F1':>7}{'ms a text':>11}"
    ]
    for name, own in accuracy.items():
        size = metrics[name]["size"]
        span = f"{100 * own['low']:.1f}–{100 * own['high']:.1f}"
        lines.append(
            f"{own['label']:{width}}{size['bytes'] / 1e6:8.1f}{size['parameters'] / 1e6:9.2f}"
            f"{100 * own['estimate']:10.2f}{span:>14}{100 * metrics[name]['test']['f1']:7.2f}"
            f"{milliseconds[name]:11.2f}"
        )
    if len(next(iter(accuracy.values()))["seeds"]) > 1:
        lines.append("accuracy is over all seeds, the other columns are of the first")
    lines.append(f"F1 is {whose_f1(labels)}")
    label, share = metrics["most_frequent"].values()
    lines.append(f"{100 * share:.2f} % of the test rows are {one_line(label)!r}")
    guessing = [own["label"] for own in accuracy.values() if own["estimate"] <= share]
    unsure = [own["label"] for own in accuracy.values() if own["low"] <= share < own["estimate"]]
    if guessing:
        lines.append(
            f"no better than this answer alone: {'; '.join(guessing)}. Raise --epochs or "
            "--learning-rate, or give more rows"
        )
    if unsure:
        lines.append(f"perhaps no better, more rows would tell: {'; '.join(unsure)}")
    return "\n".join(lines)
