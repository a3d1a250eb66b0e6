"""From a CSV to a small classifier: fine-tune a teacher, distil it into a student, quantise that.

    python code/distill_csv.py --csv news.csv --output news-models
    python code/distill_csv.py --csv mail.csv --text-column body --label-column spam --output mail
    python code/predict.py --model news-models/student-int8 "a text of your own"

Rows are split 80/10/10 by class, equal texts on one side; teacher and students see the same rows.
Beside the distilled student stands one that was trained alike but without the teacher: the
difference is what distillation is worth on these data. All is measured on the test split after
reloading from --output, which holds the four models with their cards, the predictions and the
record.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from distilbert_kit.script import entry_point

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from distilbert_kit.data.batches import ClassificationDataset, LengthBatchSampler, create_dataloader
from distilbert_kit.data.csv import load_labelled_texts, sorted_labels, split_texts
from distilbert_kit.data.listed import DataUsed, rows_sha256
from distilbert_kit.data.tasks import Task
from distilbert_kit.files import check_output_folder, locked, replacing_folder
from distilbert_kit.metrics import agreement
from distilbert_kit.models.checkpoints import get_tokenizer
from distilbert_kit.models.initialisation import choose_layers, extract_student
from distilbert_kit.models.model import (
    DistilBERTForMaskedLM,
    DistilBERTForSequenceClassification,
    count_parameters,
)
from distilbert_kit.serve.export import FILES, OnnxModel, count_onnx_parameters, save_onnx
from distilbert_kit.settings import FinetuneSettings, SoftTargets, read_seed
from distilbert_kit.study.measure import alternate_over
from distilbert_kit.study.model_card import write_model_card
from distilbert_kit.study.records import read_record, recording
from distilbert_kit.study.statistics import wilson_interval
from distilbert_kit.training.classification import (
    CLASSIFICATION,
    classification_objective,
    predict_logits,
    score,
)
from distilbert_kit.training.loop import train
from distilbert_kit.training.objectives import Objective

MODELS = {
    "teacher": "teacher",
    "student-undistilled": "student, without the teacher",
    "student": "student, distilled",
    "student-int8": "student, distilled, int8",
}
TIMED_TEXTS = 100


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, required=True, help="with a text and a label column")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--text-column", help="default: guessed from the usual names")
    parser.add_argument("--label-column", help="default: guessed from the usual names")
    parser.add_argument("--drop-missing", action="store_true", help="skip rows without text, label")
    parser.add_argument("--encoding", default="utf-8-sig", help="default: UTF-8")
    parser.add_argument("--teacher", default="minilm", help="folder or hub name (default: minilm)")
    parser.add_argument("--layers", type=int, help="of the student (default: half the teacher's)")
    parser.add_argument("--max-length", type=int, default=64, help="tokens (default: 64)")
    parser.add_argument("--epochs", type=float, default=2.0, help="default: 2")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=2.0, help="of the soft targets")
    parser.add_argument("--soft-weight", type=float, default=0.5, help="0: labels only; 1: teacher")
    parser.add_argument("--seed", type=read_seed, default=0)
    return parser.parse_args()


def training_settings(arguments: argparse.Namespace) -> tuple[FinetuneSettings, SoftTargets]:
    """Settings of all trainings, and of the teaching."""
    names = ("epochs", "learning_rate", "batch_size", "max_length")
    targets = SoftTargets(temperature=arguments.temperature, soft_weight=arguments.soft_weight)
    settings = FinetuneSettings(
        **{name: getattr(arguments, name) for name in names},
        batch_tokens=4096,
        warmup_fraction=0.06,
        weight_decay=0.01,
    )
    return settings, targets


def fine_tune(
    start: str | Path,
    dataset: Dataset,
    objective: Objective,
    task: Task,
    settings: FinetuneSettings,
    seed: int,
    description: str,
) -> DistilBERTForSequenceClassification:
    """A classifier trained from `start`, its head drawn from the seed."""
    torch.manual_seed(seed)
    model = DistilBERTForSequenceClassification.from_pretrained(
        start, num_labels=task.num_labels, labels=task.labels
    )
    sampler = LengthBatchSampler(
        dataset.lengths, settings.batch_size, settings.batch_tokens, seed=seed
    )
    loader = create_dataloader(dataset, sampler)
    train(model, loader, objective, settings, seed=seed, description=description)
    return model


def cut_student(teacher: str, layers: int | None, folder: Path) -> list[int]:
    """Write a student of evenly chosen teacher layers, not trained; returns the layers."""
    source = DistilBERTForMaskedLM.from_pretrained(teacher)
    depth = source.config.num_layers
    chosen = choose_layers("even", depth, layers)
    extract_student(source, chosen).save_pretrained(folder)
    return chosen


def make_models(
    arguments: argparse.Namespace,
    dataset: ClassificationDataset,
    task: Task,
    settings: FinetuneSettings,
    targets: SoftTargets,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
) -> None:
    """Train, distil, quantise, and save the four models under `output`."""
    with tempfile.TemporaryDirectory() as cut:
        layers = cut_student(arguments.teacher, arguments.layers, Path(cut) / "student")
        print(f"student: teacher layers {', '.join(map(str, layers))}")
        tune = partial(fine_tune, task=task, settings=settings, seed=arguments.seed)
        teacher = tune(arguments.teacher, dataset, CLASSIFICATION, description="teacher")
        teacher.save_pretrained(output / "teacher", tokenizer)
        start = Path(cut) / "student"
        plain = tune(start, dataset, CLASSIFICATION, description="student-undistilled")
        plain.save_pretrained(output / "student-undistilled", tokenizer)
        # Once for all epochs, without dropout.
        dataset.teacher_logits = predict_logits(
            teacher, dataset, precision=settings.precision, description="teaching"
        )
        student = tune(start, dataset, classification_objective(targets), description="student")
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


def size_on_disk(folder: Path, model: nn.Module) -> dict[str, int]:
    """Bytes of the weights or graph, and parameters."""
    graph = folder / FILES["int8"]
    if graph.is_file():
        return {"bytes": graph.stat().st_size, **count_onnx_parameters(graph)}
    weights = folder / "model.safetensors"
    return {"bytes": weights.stat().st_size, "parameters": count_parameters(model)}


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


def describe(splits: dict[str, pd.DataFrame], table: pd.DataFrame, task: Task) -> None:
    """Print rows by split and class."""
    repeated = table["text"].duplicated().sum()
    clash = (table.groupby("text")["label"].nunique() > 1).sum()
    print(f"{len(table):,} rows, {repeated:,} repeat an earlier text and stay on its side", end="")
    print(f"; {clash:,} texts have several labels, mend them" if clash else "")
    width = max(map(len, task.labels))
    for label in task.labels[:20]:
        counts = (f"{(part['label'] == label).sum():6,} {name}" for name, part in splits.items())
        print(f"  {label:{width}} {' '.join(counts)}")


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


@entry_point
def main() -> None:
    arguments = parse_arguments()
    (settings, targets), output = training_settings(arguments), arguments.output
    check_output_folder(output, arguments.teacher, arguments.csv)
    # All at once: a run that is stopped leaves the models of the run before, and none of its own.
    with locked(output), replacing_folder(output) as made:
        print(run(arguments, settings, targets, made))


def run(
    arguments: argparse.Namespace, settings: FinetuneSettings, targets: SoftTargets, output: Path
) -> str:
    """Train, quantise, measure and record in an empty folder; returns the table of results."""
    table = load_labelled_texts(
        arguments.csv,
        arguments.text_column,
        arguments.label_column,
        arguments.drop_missing,
        arguments.encoding,
    )
    labels, splits = sorted_labels(table["label"]), split_texts(table, arguments.seed)
    scores = ("accuracy", "precision", "recall", "f1")
    task = Task(arguments.csv.stem, arguments.csv.name, ("text",), labels, scores, "accuracy")
    describe(splits, table, task)
    tokenizer = get_tokenizer(arguments.teacher)
    tokenizer.model_max_length = settings.max_length  # saved: predict.py cuts texts as here
    number = {label: index for index, label in enumerate(labels)}
    datasets = {
        split: ClassificationDataset(
            part["text"].tolist(),
            part["label"].map(number).tolist(),
            tokenizer,
            settings.max_length,
        )
        for split, part in splits.items()
    }
    provenance = {
        "stage": "csv",
        "cell": {"csv": arguments.csv.name, "seed": arguments.seed},
        "scale": "reduced",
        "recipe": "none",
        "settings": settings.model_dump(mode="json")
        | targets.model_dump(mode="json")
        | {"teacher": Path(arguments.teacher).name, "layers": arguments.layers},
    }
    with recording(output / "record.json", **provenance) as draft:
        for split, part in splits.items():
            rows = rows_sha256(part.to_dict("records"))
            draft.data.append(
                DataUsed(name=f"{arguments.csv.name}/{split}", rows=len(part), sha256=rows)
            )
        make_models(arguments, datasets["train"], task, settings, targets, tokenizer, output)
        models = load_models(output)
        draft.metrics, predictions = evaluate(models, datasets, splits, task)
        for name, model in models.items():
            draft.metrics[name]["size"] = size_on_disk(output / name, model)
        draft.metrics["truncated"] = {split: data.truncated for split, data in datasets.items()}
        draft.extra["milliseconds_per_text"] = latencies(models, datasets["test"])
        predictions.to_csv(output / "predictions.csv", index=False)
    record = read_record(output / "record.json")
    for name in MODELS:
        own = {"cell": record.cell | {"model": name}, "metrics": record.metrics[name]}
        write_model_card(output / name, record.model_copy(update=own), [arguments.teacher])
    times = draft.extra["milliseconds_per_text"]
    return results_table(draft.metrics, times, len(splits["test"]))


if __name__ == "__main__":
    main()
