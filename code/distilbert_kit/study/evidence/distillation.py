"""Training on a corpus: its records, and the scores against the tokens of distillation."""

from collections.abc import Sequence

from ...data.tasks import get_task
from ...errors import UserError
from .. import statistics
from ..cells import model_cells
from ..ledger import load_ledger, paper
from ..recipes import Recipe
from ..records import Record
from .comparisons import LeftOut, crossed_scores, seeds_by_task
from .scores import recorded_seeds, seed_scores


def corpus_runs(recipe: Recipe) -> dict[str, Record]:
    """Records of masked-LM training and distillation that are there, by model.

    The first run of a model that was distilled several times has the model's name, the next ones
    the names of their cells.
    """
    cells = [cell for model in recipe.models for cell in model_cells(recipe, model)]
    return {
        cell.name: cell.read_record()
        for cell in cells
        if cell.stage in ("pretrain", "distill") and cell.record.exists()
    }


def validation_rows(recipe: Recipe) -> list[dict]:
    """What each training on the corpus gained on held-out text (means of each term), and cost."""
    return [
        {
            "model": name,
            "label": recipe.models[record.cell["model"]].label
            + (f", seed {record.cell['seed']}" if "seed" in record.cell else ""),
            "stage": record.stage,
            "parameters": record.metrics.get("parameters"),
            "tokens": record.metrics["train_tokens"],
            "updates": record.metrics["updates"],
            "before": record.metrics["validation"]["before"],
            "after": record.metrics["validation"]["after"],
            "tokens_per_second": record.measured.extra["train_tokens_per_second"],
            "share_of_peak": record.measured.extra.get("share_of_matrix_products"),
            "flops": record.metrics.get("train_flops"),
            "seconds": record.measured.extra["train_seconds"],
            "gpu": record.measured.machine.get("gpu"),
        }
        for name, record in corpus_runs(recipe).items()
    ]


def loss_curves(recipe: Recipe, budgets: Sequence[dict]) -> dict[str, tuple[list[dict], float]]:
    """Model -> (losses by update, tokens an update), of pretraining and of the `budget_rows`.

    Students of the ablation are not in it: their losses differ.
    """
    alike = {row["model"] for row in budgets}
    return {
        name: (r.metrics["history"], r.metrics["train_tokens"] / r.metrics["updates"])
        for name, r in corpus_runs(recipe).items()
        if name in alike or r.stage == "pretrain"
    }


def budget_rows(recipe: Recipe) -> list[dict]:
    """Scores against distillation tokens: every model distilled as the recipe's student is, but
    for longer, shorter or with another learning rate; and what they all started from, at 0."""
    spec = recipe.models[recipe.student].distill
    if spec is None:
        return []
    rows = [{"model": spec.student, "tokens": 0, "learning_rate": None}]
    for model, record in corpus_runs(recipe).items():
        if model in recipe.models and spec.same(recipe.models[model].distill, "training"):
            rate = recipe.distill_for(model).learning_rate
            tokens = record.metrics["train_tokens"]
            rows.append({"model": model, "tokens": tokens, "learning_rate": rate})
    for row in rows:
        row["scores"] = {
            task: seed_scores(recipe, row["model"], get_task(task))
            for task in recipe.tasks
            if recorded_seeds(recipe, row["model"], task)
        }
    return rows


def token_curve(recipe: Recipe, without: LeftOut = ()) -> dict | None:
    """`statistics.curve_over_tokens` of the budgets with the student's learning rate.

    Over the macro tasks that all of them and the teacher have; None with fewer than three budgets
    and for a teacher that does not score above zero.
    """
    rate = (
        recipe.models[recipe.student].distill and recipe.distill_for(recipe.student).learning_rate
    )
    rows = [row for row in budget_rows(recipe) if row["learning_rate"] == rate]
    rows = sorted((row for row in rows if row["scores"]), key=lambda row: row["tokens"])
    models = [recipe.teacher, *(row["model"] for row in rows)]
    tasks = list(seeds_by_task(recipe, models, recipe.macro_tasks, without))
    tokens = [row["tokens"] for row in rows]
    if not tasks:
        return None
    scores = crossed_scores(recipe, models, tasks, without=without)
    training = paper()["training"]
    target, budget = load_ledger().expected["glue"], training["words"] * training["epochs"]
    try:
        found = statistics.curve_over_tokens(tokens, scores, target, budget)
    except UserError:  # there is no curve
        return None
    return {"models": models[1:], "tokens": tokens, "tasks": tasks, "target": target} | found
