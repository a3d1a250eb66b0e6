"""Figures of training: losses, budgets and the ablation."""

from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ...data.tasks import get_task
from ..figures import FULL, MARKS, PAPER, STUDENT, model_looks
from ..recipes import Recipe
from .shared import grid, interval, name_rows, pretty


def line(look: dict) -> dict:
    """The line of a model: solid if it is filled, else broken as its marker says."""
    broken = dict(zip(MARKS, cycle((":", "--", "-."))))
    return {"color": look["color"], "ls": broken.get(look["marker"], "-"), "lw": 1.2}


def loss(recipe: Recipe, histories: list[tuple[str, str, list[dict]]]) -> Figure:
    """Training loss against updates, a panel a task, a line a seed: (task, model, history)."""
    looks = model_looks(recipe)
    tasks = list(dict.fromkeys(task for task, _, _ in histories))
    figure, panels = grid(len(tasks), 1.6)
    for axes, task in zip(panels, tasks):
        for _, model, history in (line for line in histories if line[0] == task):
            x = [row["update"] for row in history]
            axes.plot(x, [row["loss"] for row in history], **line(looks[model]))
        axes.set(title=get_task(task).title, xlabel="update")
    for model in dict.fromkeys(model for _, model, _ in histories):
        panels[0].plot([], [], label=recipe.models[model].label, **line(looks[model]))
    if histories:
        figure.supylabel("training loss", size=10)
        figure.legend(loc="outside upper center", ncols=2)
    return figure


TERMS = {"ce": "distillation, L_ce", "mlm": "masked LM, L_mlm", "cos": "cosine, L_cos"}


def distillation_loss(recipe: Recipe, curves: dict[str, tuple[list[dict], float]]) -> Figure:
    """Losses by term against millions of tokens: model -> (history, tokens an update)."""
    looks = model_looks(recipe)
    terms = [term for term in TERMS if any(term in h[-1] for h, _ in curves.values())]
    figure, panels = grid(len(terms), 2.2)
    for axes, term in zip(panels, terms):
        for model, (history, tokens) in curves.items():
            if term in history[-1]:
                x = [row["update"] * tokens / 1e6 for row in history]
                axes.plot(x, [row[term] for row in history], **line(looks[model]))
        axes.set(title=pretty(TERMS[term]), xlabel="training tokens, millions")
    for model in curves:
        panels[0].plot([], [], label=recipe.models[model].label, **line(looks[model]))
    if terms:
        panels[0].set_ylabel("loss, nats (cosine: none)")
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def budget(budgets: list[dict], tasks: list[str]) -> Figure:
    """Score with its interval against tokens of distillation, a panel a task, a line a rate."""
    figure, panels = grid(len(tasks), 1.8)
    rates = sorted({row["learning_rate"] for row in budgets if row["learning_rate"]}, reverse=True)
    for axes, task in zip(panels, tasks):
        start = [row for row in budgets if not row["tokens"] and task in row["scores"]]
        for turn, (rate, mark, style) in enumerate(
            zip(rates, cycle("s^Dv"), cycle(("-", "--", ":")))
        ):
            rows = [r for r in budgets if r["learning_rate"] == rate and task in r["scores"]]
            rows = start + sorted(rows, key=lambda row: row["tokens"])
            means = [100 * row["scores"][task]["mean"] for row in rows]
            spread = [
                [100 * abs(row["scores"][task][end] - row["scores"][task]["mean"]) for row in rows]
                for end in ("low", "high")
            ]
            aside = 0.02 * turn * max(row["tokens"] / 1e6 for row in budgets)  # to see both bars
            axes.errorbar(
                [row["tokens"] / 1e6 + aside * bool(row["tokens"]) for row in rows],
                means,
                yerr=spread,
                fmt=style + mark,
                color=STUDENT,
                mfc="white" if turn else STUDENT,
                label=f"{rate:g}",
            )
        axes.set(title=get_task(task).title, xlabel="distillation tokens, millions")
    panels[0].set_ylabel("score, percent")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, title="peak learning rate", loc="outside upper center", ncols=4)
    return figure


def ablation(recipe: Recipe, rows: list[dict]) -> Figure:
    """Change of the mean score with its interval, in points; diamonds: what the paper printed."""
    figure, axes = plt.subplots(figsize=(FULL, 0.8 + 0.28 * len(rows)))
    look = {"color": STUDENT, "marker": "s"}
    for place, row in enumerate(rows):
        interval(axes, row | {"estimate": row["change"]}, place, look)
        if row["paper"] is not None:
            axes.plot(row["paper"], place + 0.27, "D", color=PAPER, ms=4)
    axes.plot([], [], "-s", color=STUDENT, label=f"this study, {recipe.scale} scale")
    axes.plot([], [], "D", color=PAPER, ms=4, label="the paper, its own scale")
    axes.axvline(0, color="k", lw=0.8)
    name_rows(axes, [pretty(row["label"]) for row in rows])
    axes.set(xlabel="change of the mean score, points")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
