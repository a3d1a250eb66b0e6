"""The sentence that answers a notebook's question, from the tables of `study/tables.py`.

A difference is called significant where its 95 % interval, or its p value after Holm at 5 %,
says so. What was not measured is said not to be.
"""

from collections.abc import Sequence

from ..data.tasks import get_task
from .settings import BACKENDS


def points(found: dict, estimate: str = "estimate") -> str:
    """A difference of scores and its interval, from fractions: "−1.2 points [−2.0, −0.4]"."""
    value, low, high = (f"{100 * found[key]:+.1f}" for key in (estimate, "low", "high"))
    return f"{value} points [{low}, {high}]".replace("-", "−")


def percent(found: dict) -> str:
    """A ratio and its interval: "92.9 % [88.2, 97.8]"."""
    low, high = (f"{100 * found[end]:.1f}" for end in ("low", "high"))
    return f"{100 * found['estimate']:.1f} % [{low}, {high}]"


def listed(names: Sequence[str]) -> str:
    """Labels in a sentence, quoted, since some hold commas: “a”, “b” and “c”."""
    *most, last = (f"“{name}”" for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 task", "9 tasks"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def size_speed(table: dict, paper: dict) -> str:
    """How much smaller DistilBERT is, and how much faster in the least favourable setting."""
    count = {row["model"]: row["parameters"] for row in table["size"]}
    least = table["least_favourable"]
    low, high = least["bounds"]
    return (
        f"DistilBERT has {1 - count['distilbert'] / count['bert']:.1%} fewer parameters than "
        f"BERT-base ({count['distilbert']:,} against {count['bert']:,}), and BERT-base takes "
        f"{least['ratio']:.2f} times as long ({low:.2f} to {high:.2f}) in the "
        f"least favourable of {len(table['rows'])} settings; the paper's own figures give "
        f"{paper['recomputed']['smaller']:.1%} and {paper['recomputed']['speedup']:.2f} times."
    ).replace("%", " %")


def scores(table: dict, student: str, teacher: str) -> str:
    """How much of its teacher's mean score the student keeps, and on how many tasks it is worse."""
    where, macro = table["scale"], {row["model"]: row for row in table["macro"]}
    if student not in macro:
        return f"Student and teacher do not have all tasks yet, so there is no answer ({where})."
    if student == teacher:
        return f"This recipe has no student beside its teacher ({where})."
    kept, tasks = macro[student]["retention"], macro[student]["tasks"]
    means = " against ".join(f"{100 * macro[name]['mean']:.1f}" for name in (student, teacher))
    if kept is None:
        return f"The teacher does not score above zero, so nothing can be kept ({means}; {where})."
    effects = [row["effect"] for row in table["comparisons"] if row["model"] == student]
    tested = [effect for effect in effects if effect not in (None, "untested")]
    worse = (
        f"is significantly worse on {tested.count('fall')} of the {counted(len(tested), 'task')}"
    )
    return (
        f"The student keeps {percent(kept)} of its teacher's mean score over "
        f"{counted(len(tasks), 'task')} at {where} ({means}), and "
        f"{worse if tested else 'one seed cannot tell whether it is worse on any'} that both have; "
        f"the paper says 97 % of BERT-base over nine tasks."
    )


def distillation(table: dict, student: str, gain: dict | None) -> str:
    """What distillation gained on held-out text, and on the tasks over the cut it started from.

    `gain` is `comparisons.mean_gap` of the student over its start.
    """
    runs = {row["model"]: row for row in table["runs"]}
    run = runs.get(student)
    if run is None or run["stage"] != "distill":
        return "This recipe does not distill its student on a corpus."
    term = "ce" if "ce" in run["after"] else next(iter(run["after"]))
    text = (
        f"Distillation on {run['tokens']:,} tokens moved the loss L_{term} on "
        f"held-out text from {run['before'][term]:.3f} to {run['after'][term]:.3f}"
    )
    if gain is None:
        return f"{text}; no task has the scores of the student and of its start."
    return (
        f"{text}, and the mean score over {counted(len(gain['tasks']), 'task')} by "
        f"{points(gain['gap'])} at {table['scale']}, against the same cut without distillation."
    )


def ablation(table: dict) -> str:
    """Which changes of the distillation lower the mean score, and whether the order is shown."""
    if not table["rows"]:
        return "This recipe takes no part of the distillation away."
    worse = [row["label"] for row in table["rows"] if row["effect"] == "fall"]
    better = [row["label"] for row in table["rows"] if row["effect"] == "rise"]
    said = []
    if worse:
        said.append(f"{len(worse)} significantly lower the mean score ({listed(worse)})")
    if better:
        said.append(f"{len(better)} significantly raise it ({listed(better)})")
    most = min(table["rows"], key=lambda row: row["change"])
    tested = any(row["effect"] != "untested" for row in table["rows"])
    nothing = "significantly changes the mean score" if tested else "is tested, with one seed,"
    found = " and ".join(said) or f"none {nothing}"
    steps = [row["gap"]["low"] > 0 for row in table["order"]]
    order = f"; the paper's order shows in {sum(steps)} of {len(steps)} steps" if steps else ""
    return (
        f"Of {counted(len(table['rows']), 'change')}, {found} at {table['scale']}; the lowest "
        f"change is “{most['label']}” with {points(most, 'change')}{order}."
    )


def lost(table: dict, student: str) -> str:
    """How often the student answers as its teacher does, beside its control, and what is lost.

    Means over the first splits of the tasks that all of them have.
    """
    rows = {}
    for row in table["rows"]:
        if row["split"] == get_task(row["task"]).eval_splits[0]:
            rows.setdefault(row["model"], {})[row["task"]] = row
    if student not in rows:
        return "Student and teacher share no task with a seed in common, so there is no answer."
    tasks = [task for task in rows[student] if all(task in own for own in rows.values())]
    if not tasks:
        return "Student and control share no task, so there is no answer."

    def mean(model: str, way: str) -> str:
        values = [(row | row["shares"])[way] for row in map(rows[model].get, tasks)]
        return f"{100 * sum(values) / len(values):.1f} %"

    others = "".join(f" ({name}: {mean(name, 'agreement')})" for name in rows if name != student)
    return (
        f"Over {', '.join(get_task(task).title for task in tasks)} the student answers as its "
        f"teacher does on {mean(student, 'agreement')}{others} of the examples; it gets "
        f"{mean(student, 'only_teacher')} wrong that the teacher gets right, and "
        f"{mean(student, 'only_student')} right that the teacher gets wrong, at {table['scale']}."
    )


def latency(table: dict) -> str:
    """The answer of notebook 06 in a sentence, from the table's own figures."""
    if not table.get("student_faster"):
        return f"No answer yet: {table['note'] or 'no row has both models'}."
    alone = [row for row in table["student_faster"] if row["batch"] == 1]
    rows = [row for row in alone if row["size"] == "paper"] or alone
    low, high = (end(row["ratio"] for row in rows) for end in (min, max))
    best = max(table["over_eager"], key=lambda row: row["ratio"], default=None)
    text = (
        f"One text at a time, the {rows[0]['size']}-size student answers {low:.2f} to {high:.2f} "
        "times as fast as its teacher, by backend, length and threads"
    )
    if best:
        text += (
            f"; the most that a backend alone gains is {best['ratio']:.2f} times "
            f"({BACKENDS[best['backend']]}, {best['length']} tokens, batch {best['batch']})"
        )
    return f"{text}; on {table['machine']['cpu']}."
