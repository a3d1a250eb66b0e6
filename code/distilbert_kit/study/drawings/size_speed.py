"""Figures of size and speed, and the one that carries the answer."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..figures import FULL, PAPER, SHADES, STUDENT, TEACHER
from ..ledger import load_ledger
from .shared import grid, name_rows, printed_mean

ENCODERS = {"bert": "BERT-base", "distilbert": "DistilBERT"}
ENCODER_COLOURS = {"bert": TEACHER, "distilbert": STUDENT}
PRINTED = ("bert_base", "distilbert")  # their names in data/paper.yaml
LINES = {"ours": "-", "transformers": "--"}


def answer(size: list[dict], slow: dict, kept: dict, paper: dict) -> Figure:
    """Size, time and score of teacher and student in percent of the teacher's, with the claims.

    The paper's are below ours. Time is that of `slow`, the least favourable setting; the score is
    `tables.kept`, a mean over tasks (the paper's: over nine, where it lacks one of these).
    """
    table3, claimed = paper["table3_size_speed"], load_ledger().expected
    figure, panels = grid(3, 1.3, sharey=True, width_ratios=(1, 1, 1.3))
    side_by_side(
        panels[0],
        [row["parameters"] / 1e6 for row in size],
        [table3["parameters_millions"][name] for name in PRINTED],
        "{:.1f}",
    )
    side_by_side(
        panels[1],
        [slow["seconds"][model] for model in ENCODERS],
        [table3["inference_seconds"][name] for name in PRINTED],
        "{:.3g}",
    )
    side_by_side(
        panels[2],
        [1.0, kept["estimate"]] if kept["tasks"] else [],
        [printed_mean(paper["table1_glue_dev"][name], kept["tasks"]) for name in PRINTED],
        "",
        [100 * kept["low"], 100 * kept["high"]] if kept["tasks"] else [],
    )
    smaller, faster, as_good = claimed["smaller"], claimed["faster"], claimed["glue"]
    claims = (
        ("Million parameters", 1 - smaller, f"{100 * smaller:.0f} % smaller"),
        ("Seconds of a pass", 1 / faster, f"{100 * (faster - 1):.0f} % faster"),
        (f"Score, {kept['scale']}", as_good, f"{100 * as_good:.0f} % kept"),
    )
    for axes, (title, share, said) in zip(panels, claims, strict=True):
        axes.plot([100 * share] * 2, [0.55, 1.5], "k--", lw=1)
        side = "right" if share > 0.8 else "center"
        axes.set_xticks([100 * share], [f"claim: {said}"], ha=side)
        axes.set(title=title, xlim=(0, None))
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
    name_rows(panels[0], ["teacher", "student"])
    for label, colour in {"teacher": TEACHER, "student": STUDENT, "the paper": PAPER}.items():
        panels[0].barh(0, 0, color=colour, label=label)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def side_by_side(
    axes: Axes,
    ours: Sequence[float],
    theirs: Sequence[float],
    form: str,
    interval: Sequence[float] = (),
) -> None:
    """Bars of teacher and student in percent of the teacher's, ours above the paper's.

    In a bar stand its value, written as `form`, and its share; `interval` is of our student's.
    """
    for values, y, words in ((ours, -0.21, form), (theirs, 0.21, "{:g}" if form else "")):
        for place, (value, share) in enumerate(zip(values, shares(values))):
            colour = PAPER if values is theirs else (TEACHER, STUDENT)[place]
            end = min([share, *interval]) if values is ours and place else share
            look = {"va": "center", "size": 9, "color": "k" if colour == STUDENT else "w"}
            axes.barh(place + y, share, height=0.4, color=colour)
            axes.text(3, place + y, words.format(value), **look)
            axes.text(end - 3, place + y, f"{share:.1f} %", ha="right", **look)
    axes.plot(interval, [1 - 0.21] * len(interval), "k|-", lw=0.9, ms=6, mew=0.9)


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
                named = f"{row['number_of_layers']} layers" if part == "layers" else part
                axes.text(
                    left + width / 2,
                    place,
                    f"{named} {width:.1f}",
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
    figure, axes = plt.subplots(figsize=(FULL, 0.95 + 0.26 * len(speeds)))
    for place, row in enumerate(speeds):
        axes.plot([row["low"], row["high"]], [place, place], "k-", lw=1.4)
        axes.plot(row["ratio"], place, "kD", ms=4)
    axes.plot([], [], "k-D", ms=4, label="measured, range of the passes")
    both, claimed = max(row["flops_ratio"] for row in speeds), load_ledger().expected["faster"]
    axes.axvline(both, color="k", lw=1, ls=":", label=f"ratio of the arithmetic, {both:.2f}")
    axes.axvline(claimed, color="k", lw=1, ls="--", label=f"the claim, {claimed:.2f}")
    axes.axvline(printed, color=PAPER, lw=2, label=f"the paper's times, {printed:.2f}")
    name_rows(
        axes,
        [f"{r['maker']}, {r['threads']} thread{'s' * (r['threads'] > 1)}" for r in speeds],
    )
    axes.set(xlabel="time of BERT-base / time of DistilBERT")
    axes.set_xlim(min(1.5, axes.get_xlim()[0]), None)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def latency(bins: list[dict], by_length: list[dict], pairs: str) -> Figure:
    """Milliseconds against length: pairs in `bins` of tokens, and random tokens of fixed lengths.

    A bin holds quantiles (5, 25, 50, 75, 95 %) by "model/maker"; the middle half is shaded.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(FULL, 2.3), sharey=True)
    middles = [(row["from"] + row["to"]) / 2 for row in bins]
    for model, label in ENCODERS.items():
        for maker, dashes in LINES.items():
            quantiles = list(zip(*(row[f"{model}/{maker}"] for row in bins)))
            look = {"color": ENCODER_COLOURS[model], "ls": dashes}
            left.plot(middles, quantiles[2], label=f"{label} ({maker})", **look)
            left.fill_between(
                middles, quantiles[1], quantiles[3], color=look["color"], alpha=0.15, lw=0
            )
    left.set(title=pairs, xlabel="tokens", ylabel="milliseconds")
    lengths = [row["length"] for row in by_length]
    for maker, dashes in LINES.items():
        values = [row[f"{maker}_milliseconds"] for row in by_length]
        right.plot(lengths, values, color=STUDENT, ls=dashes, marker="s")
    right.set(title="fixed lengths, DistilBERT only", xlabel="tokens")
    for axes, ticks in ((left, [8, 16, 32, 64]), (right, lengths)):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, labels=ticks)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def step_cost(parts: pd.DataFrame) -> Figure:
    """Seconds of each part of an update; one row per implementation."""
    figure, axes = plt.subplots(figsize=(FULL, 0.8 + 0.35 * len(parts)))
    left, longest = 0, parts.sum(axis=1).max()
    for part, colour in zip(parts.columns, cycle(SHADES)):
        label = part.replace("_", " ")
        bars = axes.barh(
            parts.index, parts[part], left=left, color=colour, ec="k", lw=0.5, label=label
        )
        left = left + parts[part].to_numpy()
        words = [f"{seconds:.1f}" if seconds > 0.04 * longest else "" for seconds in parts[part]]
        ink = "w" if colour in SHADES[:3] else "k"
        axes.bar_label(bars, words, label_type="center", color=ink)
    axes.invert_yaxis()
    axes.set(xlabel="seconds an update")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=4)
    return figure
