"""Training rows that were held out: each model's learning rate, and models side by side."""

from collections.abc import Iterable

from ..errors import UserError
from ..settings import FinetuneSettings
from .cells import held_out_cells, tuning_cells
from .recipes import Recipe


def tuning_rows(recipe: Recipe, models: Iterable[str] | None = None) -> list[dict]:
    """Mean held-out score of every model and learning rate whose trials are all recorded.

    Of some `models`, or of all. Scores are fractions, 0 where the training diverged; `chosen` is
    the rate that fine-tuning takes: the first of the best ones.
    """
    rows = []
    for model in recipe.models if models is None else models:
        scores: dict[float, dict[str, float]] = {}
        cells = tuning_cells(recipe, model)
        if not cells or not all(cell.is_recorded() for cell in cells):
            continue
        for cell in cells:
            score = cell.read_record().metrics["held_out"]["score"]
            scores.setdefault(cell.identity["learning_rate"], {})[cell.identity["task"]] = score
        means = {rate: sum(found.values()) / len(found) for rate, found in scores.items()}
        best = max(means, key=means.__getitem__)
        rows += [
            {
                "model": model,
                "learning_rate": rate,
                "scores": scores[rate],
                "mean": means[rate],
                "chosen": rate == best,
            }
            for rate in means
        ]
    return rows


def held_out_scores(recipe: Recipe) -> list[dict]:
    """Score (a fraction) of each model and task of the key `held_out`, where it is recorded."""
    return [
        {
            "model": cell.identity["model"],
            "task": cell.identity["task"],
            **{key: cell.read_record().metrics["held_out"][key] for key in ("score", "rows")},
        }
        for cell in held_out_cells(recipe)
        if cell.is_recorded()
    ]


def tuned_settings(recipe: Recipe, model: str, task: str) -> FinetuneSettings:
    """Fine-tuning settings of a model on a task, with its tuned learning rate if the recipe tunes.

    UserError when a trial is missing or was made with other settings, parents or data.
    """
    settings = recipe.finetune_for(task)
    for cell in tuning_cells(recipe, model):
        if not cell.is_recorded():
            raise UserError(f"{cell.record}: missing or not current; run {cell.shown_command}")
    chosen = [row for row in tuning_rows(recipe, [model]) if row["chosen"]]
    if not chosen:
        return settings
    return settings.model_copy(update={"learning_rate": chosen[0]["learning_rate"]})
