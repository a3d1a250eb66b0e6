"""Fine-tunings that end with one answer to everything, and what the results are without them."""

from collections.abc import Sequence

from ...data.tasks import get_task
from ..recipes import Recipe
from .comparisons import crossed_scores, retained, shared_tasks
from .distillation import token_curve
from .scores import recorded_seeds, seed_predictions


def one_answer_runs(recipe: Recipe) -> list[dict]:
    """Fine-tunings on the `macro_tasks` with the same answer to all examples of a dev set."""
    found = []
    for task in (get_task(name) for name in recipe.macro_tasks if get_task(name).labels):
        for model in recipe.models:
            if not (seeds := recorded_seeds(recipe, model, task.name)):
                continue
            frame = seed_predictions(recipe, model, task.name, task.eval_splits[0], seeds)
            found += [
                {"model": model, "task": task.name, "seed": seed}
                for seed in seeds
                if len(set(frame[seed])) == 1
            ]
    return found


def one_answer(recipe: Recipe) -> dict:
    """`one_answer_runs` of teacher and student, and the results when their seeds are left out.

    {"runs"}, and "retention", "over_control" and "curve" as in the tables, without these seeds of
    these tasks for any model: None where there are no such runs, or no seed would be left. Looked
    at afterwards: no verdict rests on it.
    """
    pair = (recipe.teacher, recipe.student)
    runs = [run for run in one_answer_runs(recipe) if run["model"] in pair]
    left_out, control = {(run["task"], run["seed"]) for run in runs}, recipe.control

    def ratio(models: Sequence[str]) -> dict | None:
        tasks = recipe.macro_tasks
        whole = shared_tasks(recipe, models, tasks, left_out) == tasks
        return retained(crossed_scores(recipe, models, tasks, without=left_out)) if whole else None

    return {
        "runs": runs,
        "retention": ratio(pair) if runs else None,
        "over_control": ratio((control, recipe.student)) if runs and control else None,
        "curve": token_curve(recipe, left_out) if runs else None,
    }
