"""Figures of size and speed, and the one that carries the answer."""

from collections.abc import Callable, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..figures import FULL, PAPER, SHADES, STUDENT, TEACHER
from .shared import grid, name_rows

ENCODERS = {"bert": "BERT-base", "distilbert": "DistilBERT"}
ENCODER_COLOURS = {"bert": TEACHER, "distilbert": STUDENT}
MAKERS = {"ours": "ours", "transformers": "transformers"}
PRINTED = ("bert_base", "distilbert")  # their names in data/paper.yaml
LINES = {"ours": "-", "transformers": "--"}


def answer(size: list[dict], slow: dict, kept: dict, paper: dict) -> Figure:
    """Size, time and score of teacher and student, the paper's below ours.

    Time is that of `slow`, the least favourable setting; the score is `tables.kept`, a mean over
    tasks (the paper's: over nine, where it lacks one of these). Both are in percent of the
    teacher's, the score's interval too.
    """
    table3 = paper["table3_size_speed"]
    figure, panels = grid(3, 1.3)
    side_by_side(
        panels[0],
        "Parameters, millions",
        [row["parameters"] / 1e6 for row in size],
        [table3["parameters_millions"][name] for name in PRINTED],
        lambda value, share: f"{value:.1f}" + (f" (−{100 - share:.1f} %)" if share < 100 else ""),
    )
    side_by_side(
        panels[1],
        "Time of a pass",
        [slow["seconds"][model] for model in ENCODERS],
        [table3["inference_seconds"][name] for name in PRINTED],
        lambda value, share: f"{share:.0f} %",
    )
    side_by_side(
        panels[2],
        f"Score, {kept['scale']}",
        [1.0, kept["estimate"]] if kept["tasks"] else [],
        [printed_mean(paper["table1_glue_dev"][name], kept["tasks"]) for name in PRINTED],
        lambda value, share: f"{share:.1f} %",
        (100 * kept["low"], 100 * kept["high"]) if kept["tasks"] else None,
    )
    name_rows(panels[2], ["teacher", "student"])
    for label, colour in {"teacher": TEACHER, "student": STUDENT, "the paper": PAPER}.items():
        panels[0].barh(0, 0, color=colour, label=label)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def printed_mean(scores: dict[str, float], tasks: Sequence[str]) -> float:
    """Mean of what the paper printed over tasks; its own mean if it lacks one, or for none."""
    if tasks and set(tasks) <= set(scores):
        return sum(scores[task] for task in tasks) / len(tasks)
    return scores["score"]


def side_by_side(
    axes: Axes,
    title: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    write: Callable[[float, float], str],
    interval: tuple[float, float] | None = None,
) -> None:
    """Bars of teacher and student, ours above the paper's, each as `write(value, share)` says.

    The share is in percent of the teacher's; `interval` is that of our student's.
    """
    for values, shift, height in ((ours, -0.17, 0.36), (theirs, 0.24, 0.22)):
        for place, (value, share) in enumerate(zip(values, shares(values))):
            colour = PAPER if values is theirs else (TEACHER, STUDENT)[place]
            axes.barh(place + shift, share, height=height, color=colour)
            end = share
            if interval and values is ours and place == 1:
                axes.plot(interval, [place + shift] * 2, "k|-", lw=1.2, ms=6)
                end = max(end, interval[1])
            axes.text(end + 6, place + shift, write(value, share), va="center")
    axes.set_title(title)
    axes.set_xlim(0, 175)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    name_rows(axes, list(ENCODERS.values()))


def shares(values: Sequence[float]) -> list[float]:
    """In percent of the first."""
    return [100 * (value / values[0]) for value in values]


def parameters(sizes: list[dict]) -> Figure:
    """Where the parameters of the paper's two models are."""
    figure, axes = plt.subplots(figsize=(FULL, 1.3))
    fade = {"embeddings": 0.45, "layers": 1.0, "pooler": 0.7}
    for place, row in enumerate(sizes):
        left = 0
        for part, alpha in fade.items():
            width = row[part] / 1e6
            colour = ENCODER_COLOURS[row["model"]]
            axes.barh(place, width, left=left, height=0.6, color=colour, alpha=alpha, ec="w")
            if row[part] > 0.05 * row["parameters"]:
                ink = "w" if row["model"] == "bert" and part == "layers" else "k"
                axes.text(
                    left + width / 2,
                    place,
                    f"{part} {width:.1f}",
                    ha="center",
                    va="center",
                    color=ink,
                )
            left += width
        axes.text(1.01 * left, place, f"{left:.1f}", va="center", weight="bold")
    name_rows(axes, [ENCODERS[row["model"]] for row in sizes])
    axes.set(xlabel="parameters, millions", xlim=(0, 1.12e-6 * sizes[0]["parameters"]))
    axes.grid(axis="y", visible=False)
    return figure


def speed_ratio(speeds: list[dict], printed: float) -> Figure:
    """BERT's time over DistilBERT's by setting, with the range of the passes."""
    figure, axes = plt.subplots(figsize=(FULL, 0.75 + 0.26 * len(speeds)))
    for place, row in enumerate(speeds):
        axes.plot([row["low"], row["high"]], [place, place], color=STUDENT, lw=2.2, alpha=0.55)
        axes.plot(row["ratio"], place, "s", color=STUDENT)
    axes.axvline(printed, color=PAPER, lw=2, label=f"the paper, {printed:.2f}")
    both = max(row["flops_ratio"] for row in speeds)
    axes.axvline(both, color="k", lw=0.8, ls=":", label=f"ratio of the arithmetic, {both:.2f}")
    axes.plot([], [], "-s", color=STUDENT, label="measured, range of the passes")
    name_rows(
        axes,
        [f"{MAKERS[r['maker']]}, {r['threads']} thread{'s' * (r['threads'] > 1)}" for r in speeds],
    )
    axes.set(xlabel="time of BERT-base / time of DistilBERT")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def latency(bins: list[dict], by_length: list[dict], pairs: str) -> Figure:
    """Milliseconds against length: pairs in `bins` of tokens, and random tokens of fixed lengths.

    A bin holds quantiles (0, 25, 50, 75, 100 %) by "model/maker"; the middle half is shaded.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(FULL, 2.15))
    middles = [(row["from"] + row["to"]) / 2 for row in bins]
    for model, label in ENCODERS.items():
        for maker, by in MAKERS.items():
            quantiles = list(zip(*(row[f"{model}/{maker}"] for row in bins)))
            look = {"color": ENCODER_COLOURS[model], "ls": LINES[maker]}
            left.plot(middles, quantiles[2], label=f"{label} ({by})", **look)
            left.fill_between(
                middles, quantiles[1], quantiles[3], color=look["color"], alpha=0.15, lw=0
            )
    left.set(title=pairs, xlabel="tokens", ylabel="milliseconds")
    lengths = [row["length"] for row in by_length]
    for maker in MAKERS:
        values = [row[f"{maker}_milliseconds"] for row in by_length]
        right.plot(lengths, values, color=STUDENT, ls=LINES[maker], marker="s")
    right.set(title="fixed lengths, DistilBERT", xlabel="tokens")
    for axes, ticks in ((left, [8, 16, 32, 64]), (right, lengths)):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, labels=ticks)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def step_cost(parts: pd.DataFrame) -> Figure:
    """Seconds of each part of an update; a row an implementation."""
    figure, axes = plt.subplots(figsize=(FULL, 0.8 + 0.35 * len(parts)))
    left = 0
    for part, colour in zip(parts.columns, cycle(SHADES)):
        label = part.replace("_", " ")
        axes.barh(parts.index, parts[part], left=left, color=colour, ec="k", lw=0.5, label=label)
        left = left + parts[part].to_numpy()
    axes.invert_yaxis()
    axes.set(xlabel="seconds an update")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=4)
    return figure
