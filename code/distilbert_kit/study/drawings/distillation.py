"""Figures of training: losses, budgets and the ablation."""

from itertools import cycle
from math import log10
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...data.tasks import get_task
from ..figures import FULL, MARKS, PAPER, STUDENT, model_looks
from ..recipes import Recipe
from .shared import grid, interval, name_rows, pretty, printed_mean


def line(look: dict) -> dict:
    """The line of a model: solid if it is filled, else broken as its marker says."""
    broken = dict(zip(MARKS, cycle((":", "--", "-."))))
    return {"color": look["color"], "ls": broken.get(look["marker"], "-"), "lw": 1.2}


def loss(recipe: Recipe, histories: list[tuple[str, str, list[dict]]]) -> Figure:
    """Training loss against updates, one panel per task, one line per seed: (task, model, history).

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
    """Score with interval against distillation tokens, one panel per task, one line per rate."""
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


NOTHING = 1e5  # where "no tokens" stands on an axis of their logarithm


def kept_over_tokens(told: dict, paper: dict) -> Figure:
    """What is kept of the teacher's mean score, and held-out losses, against distillation tokens.

    `told` is `tables.summary` of a recipe whose students are distilled for several budgets.
    """
    figure, (kept, losses) = grid(2, 1.9, columns=2)
    runs = sorted((r for r in told["corpus"] if r["stage"] == "distill"), key=lambda r: r["tokens"])
    taught = [run for run in runs if run["model"] in told["curve"]["models"]]
    read = paper["training"]["words"] * paper["training"]["epochs"]
    shares_over_tokens(kept, told, runs, taught)
    theirs, bert = (
        printed_mean(paper["table1_glue_dev"][name], told["macro_tasks"])
        for name in ("distilbert", "bert_base")
    )
    kept.plot(read, 100 * theirs / bert, "D", color=PAPER, label="the paper")
    for term, look in (("mlm", "-v"), ("ce", "--s"), ("cos", ":o")):
        values = [taught[0]["before"][term], *(run["after"][term] for run in taught)]
        tokens = [NOTHING, *(run["tokens"] for run in taught)]
        losses.plot(tokens, values, look, color="k", label=pretty(f"L_{term}"))
    for teacher in (run for run in told["corpus"] if run["model"] == told["teacher"]):
        look = {"color": "k", "ls": "-.", "lw": 0.8}
        losses.axhline(teacher["after"]["mlm"], label=pretty("teacher, L_mlm"), **look)
    losses.set(ylabel="loss on held-out text", title="Loss", yscale="log", ylim=(0.1, 150))
    losses.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    for axes, last in ((kept, read), (losses, taught[-1]["tokens"])):
        axes.set(xscale="log", xlabel="distillation tokens")
        powers = range(6, 11)
        axes.set_xticks([NOTHING, *(10.0**n for n in powers)])
        axes.set_xticklabels(["0", *(f"$10^{{{n}}}$" for n in powers)])
        axes.minorticks_off()
        axes.set_xlim(NOTHING / 2, 3 * last)
    losses.legend(loc="upper right", ncols=2)
    handles, labels = kept.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    return figure


def shares_over_tokens(axes: Axes, told: dict, runs: list[dict], taught: list[dict]) -> None:
    """Shares of the teacher's mean score with their intervals, the fitted line and the claim.

    Points that would hide others stand a little to the right.
    """
    shares = {row["model"]: row["retention"] for row in told["macro"] if row.get("retention")}
    varied = {row["variant"]: row["kept"] for row in told["sensitivity"]["rows"]}
    shares["left out"] = varied.get("without_one_answer")
    tokens = {run["model"]: run["tokens"] for run in runs} | {told["control"]: NOTHING}
    tokens["left out"] = 1.25 * tokens[told["student"]]
    untaught = [run["model"] for run in runs if "ce" not in run["after"]]
    tokens |= {model: 1.25 * tokens[model] for model in untaught}
    for label, models, look in (
        ("not distilled", [told["control"]], {"fmt": "o", "color": "k", "mfc": "white"}),
        ("text only", untaught, {"fmt": "^", "color": "k"}),
        ("distilled", [run["model"] for run in taught], {"fmt": "s", "color": STUDENT}),
        (
            "without collapse",
            ["left out"],
            {"fmt": "s", "color": STUDENT, "mfc": "white"},
        ),
    ):
        shown = [model for model in models if shares.get(model)]
        rows = [shares[model] | {"mean": shares[model]["estimate"]} for model in shown]
        if rows:
            with_intervals(axes, [tokens[model] for model in shown], rows, label=label, **look)
    curve = told["curve"]
    ends = [min(curve["tokens"]), max(curve["tokens"])]
    fit = [curve["intercept"] + curve["slope"]["estimate"] * log10(end) for end in ends]
    axes.plot(ends, [100 * share for share in fit], "--", color=STUDENT, lw=1)
    axes.axhline(100 * curve["target"], color=PAPER, ls=":", lw=1.2)
    axes.set(ylabel="share kept, percent", title="Score")


def scored(axes: Axes, task: str, rows: list[dict], x: list, first: int = 0, **look: Any) -> None:
    """A line through the scores of rows, with marks and intervals from the `first` on."""
    every = {"errorevery": (first, 1), "markevery": (first, 1)}
    with_intervals(axes, x, [row["scores"][task] for row in rows], **every, **look)


def with_intervals(axes: Axes, x: list, rows: list[dict], **look: Any) -> None:
    """Points in percent with their intervals, from rows of {"mean", "low", "high"}."""
    found = pd.DataFrame(rows, columns=["mean", "low", "high"])
    spread = [found["mean"] - found["low"], found["high"] - found["mean"]]
    axes.errorbar(
        x, 100 * found["mean"], yerr=[100 * abs(s) for s in spread], elinewidth=1.2, **look
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
