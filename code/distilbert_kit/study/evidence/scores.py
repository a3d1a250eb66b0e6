"""From the records of a recipe to the figures that claims and notebooks use.

Scores are fractions here (0.91), as in the records; the report prints percent. Where several seeds
fine-tuned a model, their predictions on the same examples are the columns of an array [N, S], and
a score is the mean over the seeds.
"""

import inspect
from collections.abc import Callable

import numpy as np
import pandas as pd

from ...data.tasks import Task, get_task
from ...errors import UserError
from ...metrics import score_function
from ...study import statistics
from ..cells import evidence_cells, finetune_cell, model_cell
from ..recipes import Recipe
from ..records import Record, read_record


def present_records(recipe: Recipe) -> dict[str, Record]:
    """The records that are there, by "stage/cell"."""
    cells = evidence_cells(recipe)
    return {f"{c.stage}/{c.name}": read_record(c.record) for c in cells if c.record.exists()}


def failed_records(recipe: Recipe) -> dict[str, Record]:
    """The records of runs that crashed or were stopped, by "stage/cell-time"."""
    paths = sorted(recipe.folder.glob("*/failed/*.json"))
    return {f"{path.parts[-3]}/{path.stem}": read_record(path) for path in paths}


def benchmark_record(recipe: Recipe, stage: str) -> Record | None:
    """The record of a benchmark stage, None if it is not there or not part of the recipe."""
    return present_records(recipe).get(f"benchmark/{stage}")


def seed_predictions(
    recipe: Recipe,
    model: str,
    task: str,
    split: str,
    seeds: list[int],
    metric: str | None = None,
) -> pd.DataFrame:
    """Columns reference, phenomenon and tokens (where they are known), and predictions per seed.

    For question answering the predictions are scores: of each question by `metric` (default: the
    primary one), and the reference is 1, that of a right answer.
    """
    by_question = get_task(task).kind == "question_answering"
    column = (metric or get_task(task).primary) if by_question else "prediction"
    columns = {}
    for seed in seeds:
        frame = pd.read_parquet(finetune_cell(recipe, model, task, seed).predictions(split))
        columns[seed] = frame[column]
    if by_question:
        frame["reference"] = 1.0
    tags = [name for name in ("reference", "phenomenon", "tokens") if name in frame]
    return pd.concat([frame[tags], pd.DataFrame(columns)], axis=1)


def recorded_seeds(recipe: Recipe, model: str, task: str) -> list[int]:
    """Seeds whose record and predictions are there."""

    def present(seed: int) -> bool:
        cell = finetune_cell(recipe, model, task, seed)
        return cell.record.exists() and all(path.exists() for path in cell.outputs)

    return [seed for seed in recipe.seeds if present(seed)]


def _score_function(metric: str, task: Task) -> Callable[..., np.ndarray | float]:
    """`metrics.score_function`; of question answering the mean of what `seed_predictions` gives."""
    if task.kind == "question_answering":
        return lambda predictions, references, axis=-1: predictions.mean(axis=axis)
    return score_function(metric, task.num_labels)


def mean_over_seeds(metric: str, task: Task) -> Callable[..., np.ndarray] | None:
    """The metric as a function of predictions [..., N, S] and references [..., N], for bootstraps.

    The mean over the S seeds, on the same examples for all of them. None for precision and recall,
    which have no vectorised form: a thousand calls of scikit-learn take seconds.
    """
    score = _score_function(metric, task)
    if "axis" not in inspect.signature(score).parameters:
        return None

    def mean(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        columns = np.moveaxis(predictions, -1, 0)
        return np.mean([score(column, references, axis=axis) for column in columns], axis=0)

    return mean


def score_rows(recipe: Recipe) -> list[dict]:
    """One row per model, task, split and metric: spread over seeds, interval over examples."""
    rows = []
    for task in map(get_task, recipe.tasks):
        for model in recipe.models:
            seeds = recorded_seeds(recipe, model, task.name)
            if not seeds:
                continue
            records = [
                read_record(finetune_cell(recipe, model, task.name, s).record) for s in seeds
            ]
            for split in task.eval_splits:
                for metric in task.metrics:
                    frame = seed_predictions(recipe, model, task.name, split, seeds, metric)
                    score, predicted = mean_over_seeds(metric, task), frame[seeds].to_numpy()
                    interval = score and statistics.bootstrap_interval(
                        score, predicted, frame["reference"]
                    )
                    values = [record.metrics[split][metric] for record in records]
                    rows.append(
                        {
                            "model": model,
                            "label": recipe.models[model].label,
                            "task": task.name,
                            "split": split,
                            "metric": metric,
                            "primary": metric == task.primary,
                            "examples": len(frame),
                            "values": values,
                            "over_seeds": statistics.summarise(values),
                            "over_examples": interval,
                        }
                    )
    return rows


def compare(recipe: Recipe, model: str, reference: str, task_name: str) -> list[dict]:
    """Paired comparison of two models on a task, one row per split; empty without records.

    `gap` is reference minus model of the task's primary metric with its paired bootstrap interval
    over examples and Student's over seeds; `retention` is model over reference; McNemar's exact
    test stands beside it for every seed that both share (not for regression).
    """
    task, rows = get_task(task_name), []
    both = [set(recorded_seeds(recipe, name, task.name)) for name in (model, reference)]
    if not (seeds := sorted(both[0] & both[1])):
        return []
    for split in task.eval_splits:
        ours, theirs = (
            seed_predictions(recipe, name, task.name, split, seeds) for name in (model, reference)
        )
        truth = ours["reference"].to_numpy()
        score = mean_over_seeds(task.primary, task)
        per_seed = [
            float(score(theirs[[s]].to_numpy(), truth) - score(ours[[s]].to_numpy(), truth))
            for s in seeds
        ]
        tests = []
        if not task.is_regression:
            for s in seeds:
                hits = (frame[s].to_numpy() == truth for frame in (theirs, ours))
                tests.append({"seed": s, **statistics.mcnemar(*hits)})
        gap = statistics.paired_bootstrap(
            score, theirs[seeds].to_numpy(), ours[seeds].to_numpy(), truth
        )
        rows.append(
            {
                "model": model,
                "reference": reference,
                "task": task.name,
                "split": split,
                "metric": task.primary,
                "seeds": seeds,
                "gap": gap,
                "gap_over_seeds": statistics.summarise(per_seed),
                "retention": _retained(recipe, model, reference, [task.name], split),
                "mcnemar": tests,
            }
        )
    return rows


def paired_runs(
    recipe: Recipe, model: str, reference: str, tasks: list[str], split: str | None = None
) -> tuple[dict, dict]:
    """Runs and score functions by task (first split), as the intervals over tasks take them."""
    runs, scores = {}, {}
    for task in map(get_task, tasks):
        where = split or task.eval_splits[0]
        both = [set(recorded_seeds(recipe, name, task.name)) for name in (reference, model)]
        seeds = sorted(both[0] & both[1])
        pair = [
            seed_predictions(recipe, name, task.name, where, seeds) if seeds else None
            for name in (reference, model)
        ]
        runs[task.name] = [(pair[0][s], pair[1][s], pair[0]["reference"]) for s in seeds]
        scores[task.name] = _score_function(task.primary, task)
    return runs, scores


def retention_interval(recipe: Recipe, *names_tasks_split, **options) -> dict:
    """`statistics.retention_interval` of the runs of `paired_runs`."""
    return statistics.retention_interval(*paired_runs(recipe, *names_tasks_split), **options)


def _retained(*arguments, **options) -> dict | None:
    """`retention_interval`, None for a teacher at chance: there is nothing to retain."""
    try:
        return retention_interval(*arguments, **options)
    except UserError:
        return None


def guessing_score(recipe: Recipe, model: str, task: Task) -> float:
    """`guessing` of a task's dev set; 0 where the answers are no classes."""
    if not task.labels:
        return 0.0
    seeds = recorded_seeds(recipe, model, task.name)[:1]
    frame = seed_predictions(recipe, model, task.name, task.eval_splits[0], seeds)
    return guessing(frame["reference"].to_numpy(), task)


def guessing(references: np.ndarray, task: Task) -> float:
    """The primary metric of giving every example the most frequent of the classes [N]."""
    guesses = np.full_like(references, np.bincount(references).argmax())
    return float(score_function(task.primary, task.num_labels)(guesses, references))


def macro_rows(recipe: Recipe) -> list[dict]:
    """Mean score and retention over the recipe's `macro_tasks`.

    Retention is given as the paper means it, without WNLI, and with the score of guessing taken
    off both sides. Models that lack a task have no row: a mean over fewer is another number.
    """
    tasks, rows = recipe.macro_tasks, []
    for model in recipe.models:
        names = (model, recipe.teacher)
        if not all(recorded_seeds(recipe, name, task) for task in tasks for name in names):
            continue
        scores = _mean_scores(recipe, model)
        row = {"model": model, "label": recipe.models[model].label, "tasks": tasks}
        row |= {"scores": scores, "mean": np.mean([scores[task]["mean"] for task in tasks])}
        if model != recipe.teacher:
            chance = {t: guessing_score(recipe, model, get_task(t)) for t in tasks}
            variants = {"retention": {}, "above_guessing": {"chance": chance}}
            if "wnli" in tasks and len(tasks) > 1:
                variants["without_wnli"] = {"exclude": ["wnli"]}
            for name, options in variants.items():
                row[name] = _retained(recipe, *names, tasks, **options)
        rows.append(row)
    return rows


def corpus_runs(recipe: Recipe) -> dict[str, Record]:
    """Records of masked-LM training and distillation that are there, by model."""
    cells = [cell for model in recipe.models if (cell := model_cell(recipe, model))]
    return {
        cell.name: read_record(cell.record)
        for cell in cells
        if cell.stage in ("pretrain", "distill") and cell.record.exists()
    }


def _mean_scores(recipe: Recipe, model: str) -> dict[str, dict]:
    """Mean over seeds of a model's primary metric, by task (first split), where recorded."""
    found = {}
    for task in map(get_task, recipe.tasks):
        records = [
            read_record(finetune_cell(recipe, model, task.name, seed).record)
            for seed in recorded_seeds(recipe, model, task.name)
        ]
        if records:
            values = [record.metrics[task.eval_splits[0]][task.primary] for record in records]
            found[task.name] = statistics.summarise(values)
    return found


def budget_rows(recipe: Recipe) -> list[dict]:
    """Scores against distillation tokens: every model distilled as the recipe's student is, but
    for longer, shorter or with another learning rate; and what they all started from, at 0."""
    spec = recipe.models[recipe.student].distill
    if spec is None:
        return []
    rows = [{"model": spec.student, "tokens": 0, "learning_rate": None}]
    for model, record in corpus_runs(recipe).items():
        other = recipe.models[model].distill
        if other is not None and other.model_copy(update={"training": spec.training}) == spec:
            rate = recipe.distill_for(model).learning_rate
            tokens = record.metrics["train_tokens"]
            rows.append({"model": model, "tokens": tokens, "learning_rate": rate})
    return [row | {"scores": _mean_scores(recipe, row["model"])} for row in rows]


def counterpart(recipe: Recipe, model: str) -> str | None:
    """The model distilled as `model` was, but with the student's loss and start; or None."""
    own, other = recipe.models[recipe.student].distill, recipe.models[model].distill
    if own is None or other is None:
        return None
    wanted = other.model_copy(update={"loss": own.loss, "student": own.student})
    equals = (name for name, spec in recipe.models.items() if spec.distill == wanted)
    return next((name for name in equals if name != model), None)


def ablation_rows(recipe: Recipe) -> list[dict]:
    """Table 4: what each change of the student's distillation does to the mean score.

    A row is a model distilled with other loss weights or from another start than its counterpart.
    `change` is its mean score minus the counterpart's over the tasks that both have, with its
    interval over seeds and examples.
    """
    rows = []
    for model, spec in recipe.models.items():
        if (reference := counterpart(recipe, model)) is None:
            continue
        both = (reference, model)
        tasks = [t for t in recipe.tasks if all(recorded_seeds(recipe, n, t) for n in both)]
        if not tasks:
            continue
        found = statistics.macro_gap_interval(*paired_runs(recipe, model, reference, tasks))
        rows.append(
            {
                "model": model,
                "label": spec.label,
                "reference": reference,
                "loss": spec.distill.loss.model_dump(),
                "start": spec.distill.student,
                "tasks": tasks,
                "seeds": found["seeds"],
                "change": found["estimate"],
                "low": found["low"],
                "high": found["high"],
            }
        )
    return rows


def confusion_rows(recipe: Recipe) -> list[dict]:
    """Confusion matrices (rows: reference), summed over the seeds."""
    rows = []
    for task in map(get_task, recipe.tasks):
        for model in recipe.models if task.labels else ():
            seeds = recorded_seeds(recipe, model, task.name)
            records = [
                read_record(finetune_cell(recipe, model, task.name, s).record) for s in seeds
            ]
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


def provenance(recipe: Recipe) -> dict:
    """Every record, failed runs, what is missing, data with hashes, machines, versions, compute."""
    found, failed = present_records(recipe), failed_records(recipe)
    cells = {f"{cell.stage}/{cell.name}": cell for cell in evidence_cells(recipe)}
    everything = [*found.values(), *failed.values()]
    data = {used.name: used.model_dump() for r in everything for used in r.data}
    machines, versions = [], []
    for record in everything:
        machine = {k: v for k, v in record.measured.machine.items() if k != "threads"}
        if machine not in machines:
            machines.append(machine)
        if record.measured.versions not in versions:
            versions.append(record.measured.versions)
    return {
        "records": [
            {
                "name": name,
                "key": record.key,
                "scale": record.scale,
                "current": cells[name].is_recorded(),
                "wall_seconds": record.measured.wall_seconds,
                "peak_memory_bytes": record.measured.peak_memory_bytes,
                "finished": record.measured.finished,
                "commit": record.measured.git_commit or "unknown",
                "dirty": bool(record.measured.git_dirty),
            }
            for name, record in found.items()
        ],
        "missing": [name for name in cells if name not in found],
        "failed": [
            {"name": name, "error": record.error, "wall_seconds": record.measured.wall_seconds}
            for name, record in failed.items()
        ],
        "wall_seconds": sum(record.measured.wall_seconds for record in found.values()),
        "failed_wall_seconds": sum(record.measured.wall_seconds for record in failed.values()),
        "data": sorted(data.values(), key=lambda used: used["name"]),
        "machines": machines,
        "versions": versions,
    }
