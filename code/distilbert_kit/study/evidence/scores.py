"""From the records of a recipe to the figures that claims and notebooks use.

Scores are fractions here (0.91), as in the records; the report prints percent. Where several seeds
fine-tuned a model, its score is the mean over the seeds.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from ...data.tasks import Task, get_task
from ...errors import UserError
from ...files import content_key
from ...metrics import score_function
from .. import statistics
from ..cells import finetune_cell
from ..recipes import Recipe
from ..records import Record
from .history import finetune_records


def recorded_main_models(recipe: Recipe) -> list[str]:
    """The recipe's main models of which a fine-tuning is recorded."""
    recorded = {record.cell["model"] for record in finetune_records(recipe).values()}
    return [model for model in recipe.main_models if model in recorded]


def histories(recipe: Recipe) -> list[tuple[str, str, list[dict]]]:
    """Training losses of the main models: (task, model, rows of "update" and "loss"), each seed."""
    main = recorded_main_models(recipe)
    return [
        (record.cell["task"], record.cell["model"], record.metrics["history"])
        for record in finetune_records(recipe).values()
        if record.cell["model"] in main
    ]


def main_scores(recipe: Recipe, rows: Sequence[dict]) -> list[dict]:
    """Those of `score_rows` that count: main models, primary metric, first split."""
    main = recorded_main_models(recipe)
    return [
        row
        for row in rows
        if row["primary"]
        and row["model"] in main
        and row["split"] == get_task(row["task"]).eval_splits[0]
    ]


def read_predictions(recipe: Recipe, model: str, task: str, split: str, seed: int) -> pd.DataFrame:
    """A row for each example; UserError unless the file is the one that its record tells of."""
    cell = finetune_cell(recipe, model, task, seed)
    path = cell.predictions(split)
    try:
        if cell.read_record().wrote(path):
            return pd.read_parquet(path)
        found = "another than its record says"
    except (OSError, pa.ArrowException) as error:
        found = f"not a readable parquet file ({type(error).__name__})"
    raise UserError(f"{path}: {found}; delete it and run {cell.shown_command}")


def check_same_rows(frames: Iterable[pd.DataFrame], whose: str) -> None:
    """Raise UserError unless the predictions are of the same examples in the same order.

    Told by the ids of questions, else by the references.
    """
    first, *others = (frame["id" if "id" in frame else "reference"] for frame in frames)
    if not all(first.equals(other) for other in others):
        raise UserError(f"{whose}: predictions of other rows, or in another order; run them again")


def seed_predictions(
    recipe: Recipe,
    model: str,
    task: str,
    split: str,
    seeds: list[int],
    metric: str | None = None,
) -> pd.DataFrame:
    """Columns id, reference, phenomenon and tokens (where known), and predictions per seed.

    For question answering the predictions are scores: of each question by `metric` (default: the
    primary one), and the reference is 1, that of a right answer. UserError as `seed_records`.
    """
    seed_records(recipe, model, task, seeds)
    by_question = get_task(task).kind == "question_answering"
    column = (metric or get_task(task).primary) if by_question else "prediction"
    frames = {seed: read_predictions(recipe, model, task, split, seed) for seed in seeds}
    columns = {seed: frame[column] for seed, frame in frames.items()}
    frame = frames[seeds[-1]]
    check_same_rows(frames.values(), f"{model} on {task}, {split}")
    if by_question:
        frame["reference"] = 1.0
    tags = [name for name in ("id", "reference", "phenomenon", "tokens") if name in frame]
    return pd.concat([frame[tags], pd.DataFrame(columns)], axis=1)


def recorded_seeds(recipe: Recipe, model: str, task: str) -> list[int]:
    """Seeds whose record and predictions are there."""

    def present(seed: int) -> bool:
        cell = finetune_cell(recipe, model, task, seed)
        return cell.record.exists() and all(path.exists() for path in cell.outputs)

    return [seed for seed in recipe.seeds_of(model, task) if present(seed)]


def task_score_function(metric: str, task: Task) -> Callable[..., np.ndarray | float]:
    """`metrics.score_function`; of question answering the mean of what `seed_predictions` gives."""
    if task.kind == "question_answering":
        return lambda predictions, references, axis=-1: predictions.mean(axis=axis)
    return score_function(metric, task.num_labels)


# These have no vectorised form: a thousand calls of scikit-learn take seconds.
_WITHOUT_INTERVAL = ("precision", "recall")


def _score_interval(
    recipe: Recipe, model: str, task: Task, split: str, seeds: list[int], metric: str
) -> dict:
    """Interval over seeds and examples."""
    frame = seed_predictions(recipe, model, task.name, split, seeds, metric)
    runs = [(frame[seed], frame["reference"]) for seed in seeds]
    found = statistics.crossed_scores(runs, task_score_function(metric, task))
    return statistics.score_interval({task.name: found})


def seed_records(recipe: Recipe, model: str, task: str, seeds: Sequence[int]) -> list[Record]:
    """The records of a model's fine-tunings on a task, one for each seed.

    UserError where their settings or tuned learning rates differ: the recipe was edited, or the
    tuning made again, in between.
    """
    records = [finetune_cell(recipe, model, task, seed).read_record() for seed in seeds]
    alike: dict[str, list[int]] = {}
    for seed, record in zip(seeds, records, strict=True):
        how = content_key([record.settings, record.metrics.get("learning_rate")])
        alike.setdefault(how, []).append(seed)
    if len(alike) > 1:
        groups = " and ".join(", ".join(map(str, group)) for group in alike.values())
        raise UserError(
            f"{model} on {task}: seeds {groups} were fine-tuned with different settings or "
            "learning rates, so they have no mean; delete the older records and run them again"
        )
    return records


def score_rows(recipe: Recipe) -> list[dict]:
    """One row per model, task, split and metric: the seeds' spread, and the mean's interval."""
    rows = []
    for task in map(get_task, recipe.tasks):
        for model in recipe.models:
            if not (seeds := recorded_seeds(recipe, model, task.name)):
                continue
            records = seed_records(recipe, model, task.name, seeds)
            for split in task.eval_splits:
                examples = len(seed_predictions(recipe, model, task.name, split, seeds[:1]))
                for metric in task.metrics:
                    values = [record.metrics[split][metric] for record in records]
                    rows.append(
                        {
                            "model": model,
                            "label": recipe.models[model].label,
                            "task": task.name,
                            "split": split,
                            "metric": metric,
                            "primary": metric == task.primary,
                            "examples": examples,
                            "seeds": seeds,
                            "values": values,
                            "over_seeds": statistics.summarise(values),
                            "interval": None
                            if metric in _WITHOUT_INTERVAL
                            else _score_interval(recipe, model, task, split, seeds, metric),
                        }
                    )
    return rows


def seed_scores(recipe: Recipe, model: str, task: Task) -> dict:
    """`statistics.summarise` of the primary metric on the first split, and its interval."""
    seeds, split = recorded_seeds(recipe, model, task.name), task.eval_splits[0]
    records = seed_records(recipe, model, task.name, seeds)
    found = statistics.summarise([record.metrics[split][task.primary] for record in records])
    interval = _score_interval(recipe, model, task, split, seeds, task.primary)
    return found | {name: interval[name] for name in ("low", "high")}


def guessing(references: np.ndarray, task: Task) -> float:
    """The primary metric of giving every example the most frequent of the classes [N]."""
    guesses = np.full_like(references, np.bincount(references).argmax())
    return float(score_function(task.primary, task.num_labels)(guesses, references))


def confusion_rows(recipe: Recipe) -> list[dict]:
    """Confusion matrices (rows: reference), summed over the seeds."""
    rows = []
    for task in map(get_task, recipe.tasks):
        for model in recipe.models if task.labels else ():
            seeds = recorded_seeds(recipe, model, task.name)
            records = seed_records(recipe, model, task.name, seeds)
            for split in task.eval_splits if seeds else ():
                counts = np.sum([r.metrics[split]["confusion_matrix"] for r in records], axis=0)
                rows.append(
                    {
                        "model": model,
                        "label": recipe.models[model].label,
                        "task": task.name,
                        "split": split,
                        "labels": list(task.labels),
                        "seeds": len(seeds),
                        "counts": counts.tolist(),
                    }
                )
    return rows
