"""From the predictions and records of a recipe to what distillation loses, beyond the scores."""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from ...data.tasks import Task, get_task
from ...metrics import agreement, expected_calibration_error, four_way_split
from .. import statistics
from ..cells import cross_evaluation_cell
from ..recipes import Recipe
from .comparisons import shared_seeds
from .scores import check_same_rows, guessing, read_predictions, recorded_seeds, seed_predictions


def _groups(frame: pd.DataFrame, by: str) -> Iterator[tuple[Hashable, pd.DataFrame]]:
    """The rows of each phenomenon, or of each quarter of the lengths in tokens, shortest first."""
    if by not in frame:
        return
    if by != "tokens":
        yield from frame.groupby(by)
        return
    edges = frame["tokens"].quantile([0.25, 0.5, 0.75])
    for _, group in frame.groupby(np.searchsorted(edges, frame["tokens"])):
        yield f"{group['tokens'].min()}–{group['tokens'].max()}", group


def error_rows(recipe: Recipe, by: str = "phenomenon") -> list[dict]:
    """Error rates by phenomenon, or by "tokens" (quarters), where known, as means over the seeds.

    The interval is Wilson's for the mean number of errors among the examples of the group.
    """
    rows = []
    for task in map(get_task, recipe.tasks):
        for model in () if task.is_regression else recipe.models:
            seeds = recorded_seeds(recipe, model, task.name)
            for split in task.eval_splits if seeds else ():
                frame = seed_predictions(recipe, model, task.name, split, seeds)
                for name, group in _groups(frame, by):
                    wrong = group[seeds].ne(group["reference"], axis=0).to_numpy().mean()
                    interval = statistics.wilson_interval(round(wrong * len(group)), len(group))
                    rows.append(
                        {
                            "model": model,
                            "task": task.name,
                            "split": split,
                            by: name,
                            "examples": len(group),
                            "error": float(wrong),
                            "low": interval["low"],
                            "high": interval["high"],
                        }
                    )
    return rows


def _outcomes(recipe: Recipe, model: str, task: Task, split: str, seed: int) -> dict:
    """The predictions, who was right, and of a classification the logits [N, C] too."""
    frame = read_predictions(recipe, model, task.name, split, seed)
    if task.kind == "question_answering":
        return {"frame": frame, "right": frame["exact_match"] > 0}
    return {
        "frame": frame,
        "right": frame["prediction"] == frame["reference"],
        "logits": frame[[f"logit_{i}" for i in range(task.num_labels)]].to_numpy(np.float64),
    }


def _calibration(outcomes: list[dict]) -> dict:
    """Mean calibration error over the seeds, and the bins of all their predictions together."""
    pairs = [(softmax(run["logits"], axis=1), run["frame"]["reference"]) for run in outcomes]
    errors = [expected_calibration_error(*pair)["expected_calibration_error"] for pair in pairs]
    probabilities, references = map(np.concatenate, zip(*pairs))
    together = expected_calibration_error(probabilities, references)
    return {
        "expected_calibration_error": float(np.mean(errors)),
        "bins": [row for row in together["bins"] if row["count"]],
    }


def students(recipe: Recipe) -> list[str]:
    """The student and its control: the model it was distilled from, or else `undistilled`."""
    control = recipe.control or "undistilled"
    return [name for name in dict.fromkeys([recipe.student, control]) if name in recipe.models]


def lost_rows(recipe: Recipe, model: str, teacher: str) -> list[dict]:
    """What a model answers otherwise than its teacher, one row per task and split; no regression.

    All are means over the seeds that both have: agreement of the predicted classes, KL(teacher‖
    model) in nats, shares of the four-way split, calibration of both. `teacher_agreement` is that
    of the teacher's seeds among each other (None with one): what another head alone changes.
    Question answering has no class: agreement is that of being right by exact match.
    """
    rows = []
    for task in map(get_task, recipe.tasks):
        seeds = [] if task.is_regression else shared_seeds(recipe, (model, teacher), task.name)
        for split in task.eval_splits if seeds else ():
            ours, theirs = (
                [_outcomes(recipe, name, task, split, seed) for seed in seeds]
                for name in (model, teacher)
            )
            frames = [run["frame"] for run in (*ours, *theirs)]
            check_same_rows(frames, f"{model}, {teacher} on {task.name}, {split}")
            by_class = task.kind == "classification"
            pairs = list(zip(theirs, ours, strict=True))
            rows.append(
                {
                    "model": model,
                    "label": recipe.models[model].label,
                    "teacher": teacher,
                    "task": task.name,
                    "split": split,
                    "seeds": seeds,
                    "examples": len(ours[0]["right"]),
                    **_mean([_likeness(*pair) for pair in pairs]),
                    "shares": _mean(
                        [four_way_split(a["right"], b["right"]) for a, b in pairs],
                        len(ours[0]["right"]),
                    ),
                    "teacher_agreement": _mean(
                        [_likeness(*pair) for pair in itertools.combinations(theirs, 2)]
                    ).get("agreement"),
                    "calibration": {"teacher": _calibration(theirs), "model": _calibration(ours)}
                    if by_class
                    else None,
                }
            )
    return rows


def _likeness(teacher: dict, model: dict) -> Mapping[str, float | None]:
    """`metrics.agreement`, or without logits the share of examples that both get right or wrong."""
    if "logits" in teacher:
        return agreement(teacher["logits"], model["logits"])
    return {"agreement": float((teacher["right"] == model["right"]).mean()), "kl": None}


def _mean(runs: Sequence[Mapping], over: float = 1) -> dict[str, float | None]:
    """Means over runs, key by key, divided by `over`; None where a value is missing."""
    return {
        key: None if value is None else float(np.mean([run[key] for run in runs]) / over)
        for key, value in (runs[0] if runs else {}).items()
    }


def cross_rows(recipe: Recipe) -> list[dict]:
    """Primary metric of each model on each task with the labels of the one it was fine-tuned on.

    First split; `guessing` is the score of always predicting the most frequent class.
    """
    rows = []
    for model in recipe.cross_evaluation.models if recipe.cross_evaluation else ():
        if not (cell := cross_evaluation_cell(recipe, model)).record.exists():
            continue
        record = cell.read_record()
        examples = {used.name.removeprefix("own/"): used.rows for used in record.data}
        for trained, tests in record.metrics.items():
            for tested, splits in tests.items():
                task = get_task(tested)
                split = task.eval_splits[0]
                matrix = splits[split].get("confusion_matrix")
                counts = matrix and np.sum(matrix, axis=1)
                rows.append(
                    {
                        "model": model,
                        "trained_on": trained,
                        "tested_on": tested,
                        "metric": task.primary,
                        "score": splits[split][task.primary],
                        "guessing": guessing(np.repeat(np.arange(len(counts)), counts), task)
                        if matrix
                        else 0.0,
                        "examples": examples[f"{task.dataset}/{split}"],
                    }
                )
    return rows
