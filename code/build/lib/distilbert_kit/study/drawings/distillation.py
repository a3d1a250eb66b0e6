"""Figures of training: losses, budgets and the ablation."""

from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
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
    """Training loss against updates, a panel a task, a line a seed: (task, model, history).

    Each line is a running mean over a twentieth of its history.
    """
    looks = model_looks(recipe)
    tasks = list(dict.fromkeys(task for task, _, _ in histories))
    figure, panels = grid(len(tasks), 1.6)
    for axes, task in zip(panels, tasks):
        for _, model, history in (line for line in histories if line[0] == task):
            rows = pd.DataFrame(history)
            means = rows["loss"].rolling(1 + len(rows) // 20, min_periods=1, center=True).mean()
            axes.plot(rows["update"], means, **line(looks[model]))
        axes.set(title=get_task(task).title, xlabel="update")
    for model in dict.fromkeys(model for _, model, _ in histories):
        panels[0].plot([], [], label=recipe.models[model].label, **line(looks[model]))
    if histories:
        figure.supylabel("training loss", size="medium")
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
    figure, panels = grid(len(tasks), 1.9)
    rates = sorted({row["learning_rate"] for row in budgets if row["learning_rate"]}, reverse=True)
    aside = 0.04 * max((row["tokens"] / 1e6 for row in budgets), default=0)  # to see both bars
    for axes, task in zip(panels, tasks):
        found = sorted((r for r in budgets if task in r["scores"]), key=lambda row: row["tokens"])
        start = [row for row in found if not row["tokens"]]
        for turn, (rate, look) in enumerate(zip(rates, cycle(("-s", "--^", ":D")))):
            rows = start + [row for row in found if row["learning_rate"] == rate]
            x = [row["tokens"] / 1e6 + aside * turn * bool(row["tokens"]) for row in rows]
            label = f"learning rate {rate:g}"
            scored(axes, task, rows, x, len(start), fmt=look, color=STUDENT, label=label)
        scored(axes, task, start, [0] * len(start), fmt="ok", mfc="white", label="not distilled")
        axes.set(title=get_task(task).title, xlabel="distillation tokens, millions")
    same_span(panels)
    panels[0].set_ylabel("score, percent")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def scored(axes: Axes, task: str, rows: list[dict], x: list, first: int = 0, **look: Any) -> None:
    """A line through the scores of rows, with marks and intervals from the `first` on."""
    scores = pd.DataFrame([row["scores"][task] for row in rows], columns=["mean", "low", "high"])
    spread = [scores["mean"] - scores["low"], scores["high"] - scores["mean"]]
    every = {"errorevery": (first, 1), "markevery": (first, 1)}
    axes.errorbar(
        x,
        100 * scores["mean"],
        yerr=[100 * abs(s) for s in spread],
        elinewidth=1.2,
        **every,
        **look,
    )


def same_span(panels: list[Axes]) -> None:
    """Let the vertical axes of panels span as much, so that slopes can be compared."""
    ends = [axes.get_ylim() for axes in panels]
    half = max((high - low for low, high in ends), default=0) / 2
    for axes, (low, high) in zip(panels, ends, strict=True):
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)


def ablation(recipe: Recipe, rows: list[dict]) -> Figure:
    """Change of the mean score with its interval, in points; diamonds: what the paper printed."""
    figure, axes = plt.subplots(figsize=(FULL, 0.8 + 0.3 * len(rows)))
    look = {"color": "k", "marker": "s"}
    for place, row in enumerate(rows):
        interval(axes, row | {"estimate": row["change"]}, place - 0.16, look)
        if row["paper"] is not None:
            axes.plot(row["paper"], place + 0.2, "D", color=PAPER)
    axes.plot([], [], "-sk", label=f"this study, {recipe.scale} scale")
    axes.plot([], [], "D", color=PAPER, label="the paper, its own scale")
    axes.axvline(0, color="k", lw=0.8)
    name_rows(axes, [pretty(row["label"]) for row in rows], bands=True)
    axes.set(xlabel="change of the mean score, points")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
