"""Two models of a recipe side by side: gaps, what is retained, and the paper's ablation.

All intervals follow the one rule of `study/statistics.py`, over fine-tuning seeds and examples. A
gap is model minus reference: below zero the model is behind. Scores are fractions (0.91).
"""

import dataclasses
import itertools
from collections.abc import Container, Mapping, Sequence

import numpy as np

from ...data.tasks import get_task
from .. import statistics
from ..recipes import Recipe
from .scores import (
    check_same_rows,
    guessing,
    recorded_seeds,
    seed_predictions,
    seed_scores,
    task_score_function,
)

LeftOut = Container[tuple[str, int]]  # pairs of task and seed
SIGNIFICANT = 0.05  # p values below it, after adjustment


def shared_seeds(
    recipe: Recipe, models: Sequence[str], task: str, without: LeftOut = ()
) -> list[int]:
    """The seeds with which all of the models are recorded on a task."""
    every = [set(recorded_seeds(recipe, model, task)) for model in models]
    return [seed for seed in sorted(set.intersection(*every)) if (task, seed) not in without]


def seeds_by_task(
    recipe: Recipe, models: Sequence[str], tasks: Sequence[str], without: LeftOut = ()
) -> dict[str, list[int]]:
    """`shared_seeds` of those of the tasks that have any.

    Where a model is made for each seed, its tasks share their seeds: those that all of them have.
    """
    found = {task: shared_seeds(recipe, models, task, without) for task in tasks}
    found = {task: seeds for task, seeds in found.items() if seeds}
    if found and made_for_each_seed(recipe, models):
        common = set.intersection(*map(set, found.values()))
        found = {task: sorted(common) for task in found if common}
    return found


def made_for_each_seed(recipe: Recipe, models: Sequence[str]) -> bool:
    """Whether seed s of every task starts from the same weights, made for this seed, of a model."""
    return any(recipe.models[recipe.body(name)].each_seed for name in models)


def crossed_scores(
    recipe: Recipe,
    models: Sequence[str],
    tasks: Sequence[str],
    split: str | None = None,
    without: LeftOut = (),
    metrics: Mapping[str, str] | None = None,
) -> dict[str, statistics.Scores]:
    """Scores of the models, in this order, by task; on the first split by default.

    `metrics`: of tasks that are scored by another metric than their primary one.
    """
    found, anew = {}, made_for_each_seed(recipe, models)
    for name, seeds in seeds_by_task(recipe, models, tasks, without).items():
        task = get_task(name)
        where = split or task.eval_splits[0]
        frames = [seed_predictions(recipe, name, task.name, where, seeds) for name in models]
        check_same_rows(frames, f"{', '.join(models)} on {task.name}, {where}")
        runs = [(*(frame[seed] for frame in frames), frames[0]["reference"]) for seed in seeds]
        metric = (metrics or {}).get(task.name, task.primary)
        scores = statistics.crossed_scores(runs, task_score_function(metric, task))
        found[name] = dataclasses.replace(scores, shared_seeds=anew)
    return found


def compare(recipe: Recipe, model: str, reference: str) -> list[dict]:
    """A model against a reference, one row for each task and split that both have.

    `gap` is that of the primary metric, `retention` the ratio (None for a reference at chance).
    One test per task, on its first split: `p_holm` and `effect` as in `_add_effects`, over the
    tasks; None for other splits.
    """
    rows = []
    for task in map(get_task, recipe.tasks):
        if not shared_seeds(recipe, (reference, model), task.name):
            continue
        for split in task.eval_splits:
            scores = crossed_scores(recipe, (reference, model), [task.name], split)
            gap = statistics.gap_interval(scores)
            rows.append(
                {
                    "model": model,
                    "reference": reference,
                    "task": task.name,
                    "split": split,
                    "metric": task.primary,
                    "seeds": gap.pop("seeds")[task.name],
                    "gap": gap,
                    "retention": retained(scores),
                    "p_holm": None,
                    "effect": None,
                }
            )
    first = [row for row in rows if row["split"] == get_task(row["task"]).eval_splits[0]]
    _add_effects(first, [row["gap"] for row in first])
    return rows


def _add_effects(rows: Sequence[dict], gaps: Sequence[dict]) -> None:
    """Add to each row what its gap shows: `effect` is "rise", "fall", "none" or "untested".

    `p_holm` is the gap's p value, adjusted after Holm over the rows. One seed is not tested: two
    runs of one model, of different seeds, would often be called different.
    """
    adjusted = iter(statistics.holm([gap["p"] for gap in gaps if gap["p"] is not None]))
    for row, gap in zip(rows, gaps, strict=True):
        row["p_holm"] = None if gap["p"] is None else next(adjusted)
        if row["p_holm"] is None:
            row["effect"] = "untested"
        elif row["p_holm"] >= SIGNIFICANT:
            row["effect"] = "none"
        else:
            row["effect"] = "rise" if gap["estimate"] > 0 else "fall"


def over_control(recipe: Recipe) -> list[dict]:
    """`compare` of the student with the model it was distilled from; [] if it was not."""
    return compare(recipe, recipe.student, recipe.control) if recipe.control else []


def mean_gap(
    recipe: Recipe, model: str, reference: str, tasks: Sequence[str] | None = None
) -> dict | None:
    """`statistics.gap_interval` of the mean scores over those of the tasks that both have.

    By default they are the recipe's `macro_tasks`. {"tasks", "gap", "by_task": the gap of each,
    "by_seed": [{"seed", "gap"}], where all tasks have the same seeds}; None without such a task.
    """
    models, asked = (reference, model), recipe.macro_tasks if tasks is None else tasks
    if not (scores := crossed_scores(recipe, models, asked)):
        return None
    every = list(seeds_by_task(recipe, models, asked).values())
    by_seed = []
    if all(seeds == every[0] for seeds in every):
        gaps = np.mean([np.diff(found.values)[:, 0] for found in scores.values()], axis=0)
        by_seed = [{"seed": s, "gap": g} for s, g in zip(every[0], gaps.tolist(), strict=True)]
    return {
        "tasks": list(scores),
        "gap": statistics.gap_interval(scores),
        "by_task": {task: np.diff(found.mean).item() for task, found in scores.items()},
        "by_seed": by_seed,
    }


def printed_gaps(paper: dict) -> dict[str, float]:
    """Student minus teacher by task, in points, as `data/paper.yaml` has them."""
    glue, downstream = paper["table1_glue_dev"], paper["table2_downstream"]
    pairs = {task: (glue["distilbert"][task], score) for task, score in glue["bert_base"].items()}
    pairs.pop("score")  # their mean
    for task, metric in {"imdb": "imdb_accuracy", "squad": "squad_v1_em"}.items():
        pairs[task] = (downstream[metric]["distilbert"], downstream[metric]["bert_base"])
    return {task: student - teacher for task, (student, teacher) in pairs.items()}


def retained(scores: dict[str, statistics.Scores], **options) -> dict | None:
    """`statistics.ratio_interval`, None for a teacher at chance: there is nothing to retain."""
    try:
        return statistics.ratio_interval(scores, **options)
    except statistics.AtChanceError:
        return None


def _mean_ratios(scores: dict[str, statistics.Scores]) -> dict[str, dict | None]:
    """`retained` over all tasks, and without WNLI where it is one of several."""
    found = {"retention": retained(scores)}
    if "wnli" in scores and len(scores) > 1:
        found["without_wnli"] = retained(scores, exclude=["wnli"])
    return found


def mean_over_control(recipe: Recipe) -> dict | None:
    """The student's mean score over that of the model it was distilled from, as in `macro_rows`.

    {"retention", "without_wnli"}; None if it was not distilled, or one of both lacks a task.
    """
    tasks = recipe.macro_tasks
    names = (recipe.control, recipe.student) if recipe.control else ()
    if not names or list(seeds_by_task(recipe, names, tasks)) != tasks:
        return None
    return _mean_ratios(crossed_scores(recipe, names, tasks))


def guessing_scores(recipe: Recipe) -> dict[str, float]:
    """`scores.guessing` of the dev sets that the teacher was scored on, by task.

    0 where the answers are no classes.
    """
    found = {}
    for task in map(get_task, seeds_by_task(recipe, [recipe.teacher], recipe.tasks)):
        seeds = recorded_seeds(recipe, recipe.teacher, task.name)[:1]
        frame = seed_predictions(recipe, recipe.teacher, task.name, task.eval_splits[0], seeds)
        found[task.name] = guessing(frame["reference"].to_numpy(), task) if task.labels else 0.0
    return found


def macro_rows(recipe: Recipe) -> list[dict]:
    """Mean score over the recipe's `macro_tasks`, and what is retained of the teacher's.

    Retention is given as the paper means it, without WNLI, and with the score of guessing taken
    off both sides; `gap` is the difference of the means. Models that lack a task have no row: a
    mean over fewer is another number.
    """
    tasks, chance, rows = recipe.macro_tasks, guessing_scores(recipe), []
    for model in recipe.models:
        names = (recipe.teacher, model)
        if list(seeds_by_task(recipe, names, tasks)) != tasks:
            continue
        means = {task: seed_scores(recipe, model, get_task(task)) for task in tasks}
        row = {"model": model, "label": recipe.models[model].label, "tasks": tasks}
        row |= {"scores": means, "mean": float(np.mean([means[task]["mean"] for task in tasks]))}
        if model != recipe.teacher:
            scores = crossed_scores(recipe, names, tasks)
            row["gap"] = statistics.gap_interval(scores)
            row |= _mean_ratios(scores)
            row["above_guessing"] = retained(scores, chance=chance)
        rows.append(row)
    return rows


def counterpart(recipe: Recipe, model: str) -> str | None:
    """The model distilled as `model` was, but with the student's loss and start; or None."""
    own, other = recipe.models[recipe.student].distill, recipe.models[model].distill
    if own is None or other is None:
        return None
    wanted = other.model_copy(update={"loss": own.loss, "student": own.student})
    equals = (name for name, spec in recipe.models.items() if wanted.same(spec.distill))
    return next((name for name in equals if name != model), None)


def ablation_rows(recipe: Recipe) -> list[dict]:
    """Table 4: what each change of the student's distillation does to the mean score.

    A row is a model distilled with other loss weights or from another start than its counterpart;
    `taught`: whether it had the teacher, or the text alone;
    `distillations`: from how many its scores start, of the one of both that has fewer.
    `change` is its mean score minus the counterpart's, `by_task` and `by_seed` its parts, as in
    `mean_gap`; `p_holm` and `effect` as in `_add_effects`.
    """
    rows, gaps = [], []
    for model, spec in recipe.models.items():
        if spec.distill is None or (reference := counterpart(recipe, model)) is None:
            continue
        if spec.distill.same(recipe.models[reference].distill):
            continue
        if (shared := mean_gap(recipe, model, reference)) is None:
            continue
        found = shared["gap"]
        gaps.append(found)
        rows.append(
            {
                "model": model,
                "label": spec.label,
                "reference": reference,
                "loss": spec.distill.loss.model_dump(),
                "taught": spec.distill.loss.needs_teacher,
                "start": spec.distill.student,
                "distillations": min(found["seeds"].values())
                if all(made_for_each_seed(recipe, [name]) for name in (model, reference))
                else 1,
                "tasks": shared["tasks"],
                "seeds": found["seeds"],
                "change": found["estimate"],
                "by_task": shared["by_task"],
                "by_seed": shared["by_seed"],
                **{name: found[name] for name in ("low", "high", "p")},
            }
        )
    _add_effects(rows, gaps)
    return rows


def order_rows(
    recipe: Recipe, models: Sequence[str], tasks: Sequence[str] | None = None
) -> list[dict]:
    """Whether the mean scores of models come in the given order, from low to high.

    One row for each two neighbours of those that are recorded: `gap` is the upper one's mean score
    minus the lower one's, as in `mean_gap`. An order is shown only by gaps whose
    intervals lie above zero: means that happen to come in that order are none.
    """
    rows = []
    for lower, upper in itertools.pairwise(name for name in models if name in recipe.models):
        if shared := mean_gap(recipe, upper, lower, tasks):
            rows.append({"lower": lower, "upper": upper} | shared)
    return rows
