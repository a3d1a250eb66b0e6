"""How the main result changes with other tasks and seeds. No verdict rests on these rows."""

from collections.abc import Mapping, Sequence

from ...data.tasks import GLUE, get_task
from .. import statistics
from ..recipes import Recipe
from .comparisons import LeftOut, crossed_scores, retained, seeds_by_task, shared_seeds
from .distillation import token_curve
from .scores import recorded_seeds, seed_predictions

HALF_WIDTH = 0.02  # of the share that a student keeps

# GLUE has two metrics for these tasks (arXiv 1804.07461, Table 1): the one not primary here.
OTHER_METRICS = {"mrpc": "accuracy", "qqp": "f1", "stsb": "spearman"}


def one_answer_runs(recipe: Recipe) -> list[dict]:
    """Fine-tunings of teacher, student and control that give one answer to a whole dev set.

    Of `recipe.tasks` that have classes: {"model", "task", "seed"}.
    """
    models = [recipe.teacher, recipe.student, *([recipe.control] if recipe.control else [])]
    found = []
    for task in (get_task(name) for name in recipe.tasks if get_task(name).labels):
        for model in models:
            if not (seeds := recorded_seeds(recipe, model, task.name)):
                continue
            frame = seed_predictions(recipe, model, task.name, task.eval_splits[0], seeds)
            found += [
                {"model": model, "task": task.name, "seed": seed}
                for seed in seeds
                if len(set(frame[seed])) == 1
            ]
    return found


def _compared(
    recipe: Recipe,
    models: Sequence,
    tasks: list[str],
    without: LeftOut = (),
    metrics: Mapping[str, str] | None = None,
) -> dict | None:
    """Scores of two models; None where one is missing or lacks a task."""
    if None in models or list(seeds_by_task(recipe, models, tasks, without)) != tasks:
        return None
    return crossed_scores(recipe, models, tasks, without=without, metrics=metrics)


def seeds_needed(recipe: Recipe) -> dict:
    """About how many "seeds" a task would take for an interval of ± "half_width".

    Around what the student keeps on the `macro_tasks`, by `seeds_for_ratio`; None if not known.
    """
    scored = _compared(recipe, (recipe.teacher, recipe.student), recipe.macro_tasks)
    seeds = scored and statistics.seeds_for_ratio(scored, HALF_WIDTH)
    return {"half_width": HALF_WIDTH, "seeds": seeds}


def sensitivity(recipe: Recipe, first: int) -> dict:
    """What the student keeps, what its control keeps, and its score over the control's, varied.

    `first`: the number of seeds, from the front of each task's seeds, of the row "first_seeds".
    "rows": "planned" (the `macro_tasks`, all seeds), "every_task" (all tasks of GLUE),
    "first_seeds", "without_one_answer", without the seeds of the `one_answer_runs` for all models,
    "other_metrics", and for each of three planned tasks or more "without_task"; a row is
    {"variant", "tasks", "metrics" (by task, those that are not primary), "kept", "control_kept",
    "over_control"}, the last three None where a model lacks a task. A variant that changes nothing
    has no row. "curve": the `token_curve` without the runs of "one_answer". "half_width", "seeds":
    `seeds_needed`.
    """
    planned = recipe.macro_tasks
    failed = one_answer_runs(recipe)
    left_out = {(run["task"], run["seed"]) for run in failed if run["task"] in planned}
    pair = (recipe.teacher, recipe.student)
    shared = {(task, seed) for task in planned for seed in shared_seeds(recipe, pair, task)}
    later = {
        (task, seed) for task in planned for seed in recipe.seeds_of(recipe.student, task)[first:]
    }
    every = [task for task in recipe.tasks if task in GLUE]

    def row(
        variant: str,
        tasks: list[str],
        without: LeftOut = (),
        metrics: Mapping[str, str] | None = None,
    ) -> dict:
        def ratio(*models: str | None) -> dict | None:
            found = _compared(recipe, models, tasks, without, metrics)
            return found and retained(found)

        return {
            "variant": variant,
            "tasks": tasks,
            "metrics": metrics or {},
            "kept": ratio(recipe.teacher, recipe.student),
            "control_kept": ratio(recipe.teacher, recipe.control),
            "over_control": ratio(recipe.control, recipe.student),
        }

    rows = [row("planned", planned)]
    if set(every) > set(planned):
        rows.append(row("every_task", every))
    if shared & later:
        rows.append(row("first_seeds", planned, later))
    if left_out:
        rows.append(row("without_one_answer", planned, left_out))
    if other := {task: OTHER_METRICS[task] for task in planned if task in OTHER_METRICS}:
        rows.append(row("other_metrics", planned, metrics=other))
    if len(planned) > 2:
        for task in planned:
            rows.append(row("without_task", [other for other in planned if other != task]))
    return {
        "one_answer": failed,
        **seeds_needed(recipe),
        "rows": rows,
        "curve": token_curve(recipe, left_out) if left_out else None,
    }
