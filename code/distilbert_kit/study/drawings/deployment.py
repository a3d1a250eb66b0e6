"""Figures of latency by backend, and of score against time and bytes."""

from matplotlib.figure import Figure

from ...data.tasks import get_task
from ..evidence.latency import STUDENTS
from ..figures import STUDENT, TEACHER, model_looks
from ..recipes import Recipe
from ..settings import BACKENDS
from .shared import grid, pretty

LINES, MARKERS = ("-", "--", ":", "-.", "-.", "--", "-"), "os^vPDX"
LOOKS = dict(zip(BACKENDS, zip(LINES, MARKERS, strict=True), strict=True))


def latency(rows: list[dict], threads: int) -> Figure:
    """p50 by length at batch 1, one panel per size: a colour per model, a line per backend."""
    sizes = [size for size in STUDENTS if any(row["size"] == size for row in rows)]
    figure, panels = grid(len(sizes), 3.0, columns=2)
    drawn = {}
    for axes, size in zip(panels, sizes, strict=True):
        for model, colour in zip(STUDENTS[size], (TEACHER, STUDENT), strict=True):
            for backend, (line, marker) in LOOKS.items():
                point = {"size": size, "model": model, "backend": backend}
                point |= {"batch": 1, "threads": threads}
                found = [r for r in rows if all(r[key] == value for key, value in point.items())]
                if found:
                    points = zip(*((r["length"], r["p50"]) for r in found), strict=True)
                    axes.plot(*points, line, marker=marker, color=colour, lw=1.2, alpha=0.8)
                    if backend not in drawn:
                        (drawn[backend],) = axes.plot([], [], line, marker=marker, color="k")
        axes.set(xscale="log", yscale="log", xlabel="tokens")
        lengths = sorted({row["length"] for row in rows if row["size"] == size})
        axes.set_xticks(lengths, labels=lengths)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,g}")
        called = "small models" if size == "study" else f"{size} size"
        axes.set_title(f"{called}, {threads} thread{'s' * (threads > 1)}")
        axes.set_ylabel("milliseconds" if axes is panels[0] else "")
    names = {BACKENDS[backend]: drawn[backend] for backend in LOOKS if backend in drawn}
    for name, colour in (("teacher", TEACHER), ("student", STUDENT)):
        (names[name],) = panels[0].plot([], [], color=colour, lw=3)
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=3)
    return figure


def pareto(recipe: Recipe, rows: list[dict]) -> Figure:
    """Score against milliseconds and against megabytes; int8 forms are drawn small."""
    looks = model_looks(recipe)
    costs = {"milliseconds": ("milliseconds", 1.0), "bytes": ("megabytes", 1e-6)}
    task = rows[0]["task"] if rows else None
    scores = {"score": get_task(task).title if task else "", "macro": "mean over the tasks"}
    wanted = [
        (cost, score)
        for cost in costs
        for score in scores
        if any(row[cost] is not None and row[score] is not None for row in rows)
    ]
    figure, panels = grid(len(wanted), 2.4, columns=2)
    for axes, (cost, score) in zip(panels, wanted, strict=True):
        label, unit = costs[cost]
        for row in rows:
            if row[cost] is not None and row[score] is not None:
                small = row["form"] == "onnx_int8"
                name = pretty(row["label"]) + ", int8" * small
                look = dict(looks[row["model"]], ms=4 if small else 8)
                axes.plot(unit * row[cost], 100 * row[score], ls="", label=name, **look)
        axes.margins(0.12)
        axes.set(xlabel=label, ylabel=f"{scores[score]}, %", xlim=(0, None))
    names = {}
    for axes in panels:
        names |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=2)
    return figure
