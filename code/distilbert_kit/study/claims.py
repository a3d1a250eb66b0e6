"""The paper's claims, judged on the records of a recipe.

A claim of `recipes/claims.yaml` names an expected value and a tolerance, which span the values
that would support it: expected - tolerance and more ("at least"), expected + tolerance and less
("at most"), or what lies between the two ("about", which is judged on both sides).

    supported      the whole 95 % interval of the measured value is inside (an exact count is its
                   own interval), with at least `minimum_seeds` seeds and all of the claim's tasks
    undecided      the interval crosses the edge, or it is inside with too few seeds or tasks
    not supported  the whole interval is outside
    not tested     a model, task or record is missing, or fewer than half of the claim's tasks

Evidence is of one of three kinds, `column_of`: *reproduction*, by the authors' own weights;
*replication* at paper size, by models made here; *reduced* scale, which is an indication and
never decides: the verdict of a recipe at reduced scale on a language claim is "not tested". Size
and speed are measured at paper size in every recipe, so these claims are always tested.

Speed: the wider of the range over passes and a bootstrap over pairs, and the least favourable of
all settings decides. Intervals of scores follow the one rule of `study/statistics.py`. They cover
fine-tuning seeds and examples; a student was distilled once, and what another distillation would
give is not in them.
"""

import math
from typing import Any, Literal

from pydantic import Field, ValidationError

from ..data.tasks import GLUE, get_task
from ..errors import UserError, first_problem
from ..foreign import read_yaml
from ..paths import PAPER, RECIPES
from ..settings import Strict
from . import statistics
from .evidence.comparisons import counterpart, crossed_scores, order_rows, shared_seeds
from .evidence.history import earlier_runs
from .evidence.scores import benchmark_record
from .evidence.speed import least_favourable, speed_rows
from .recipes import Recipe, finetune_name
from .records import read_record

Verdict = Literal["supported", "undecided", "not supported", "not tested"]


Column = Literal["reproduction", "replication", "reduced"]


class Claim(Strict):
    """One claim and what would support it; fields as in the head of `recipes/claims.yaml`."""

    id: str
    title: str
    quote: str
    where: str
    metric: str
    kind: Literal[
        "smaller", "parameters", "speed", "retention", "gap", "order", "above_printed", "none"
    ]
    unit: Literal["percent", "times", "millions", "points", "ratio", "megabytes", "hours"]
    expected: float
    tolerance: float = Field(ge=0)
    direction: Literal["about", "at least", "at most"]
    model: str = "student"
    reference: str = "teacher"
    order: tuple[str, ...] = ()
    printed: str = ""
    tasks: tuple[str, ...] = ()
    stand_in: tuple[str, ...] = ()
    reason: str = ""
    changed: str = ""


class Deviation(Strict):
    """What is done otherwise than in the paper, and which way it should push results."""

    recipes: list[str]
    paper: str
    here: str
    expected: str


class Ledger(Strict):
    """All of `recipes/claims.yaml`."""

    paper: dict[str, Any]
    fixed: Any
    minimum_seeds: int
    columns: dict[Column, list[str]]
    claims: list[Claim]
    deviations: list[Deviation]


class Finding(Strict):
    """What the records say about a claim: a value with its interval, or why there is none.

    `untested`: why there is nothing to judge. `incomplete`: what is missing for full support.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    scale: str = ""
    detail: str = ""
    seeds: int | None = None
    incomplete: str = ""
    untested: str = ""
    records: tuple[str, ...] = ()


def load_ledger() -> Ledger:
    """Read and check `recipes/claims.yaml`."""
    try:
        return Ledger.model_validate(read_yaml(RECIPES / "claims.yaml"))
    except ValidationError as error:
        what = first_problem(error, "claims")
        raise UserError(f"claims.yaml: {what}; mend this key") from None


def column_of(recipe: Recipe) -> Column:
    """What kind of evidence the scores of a recipe are."""
    if recipe.scale != "paper":
        return "reduced"
    theirs = "distilbert" in (recipe.models[recipe.student].weights or "")
    return "reproduction" if theirs else "replication"


def supporting_range(claim: Claim) -> tuple[float, float]:
    """Lowest and highest value that support the claim."""
    low, high = claim.expected - claim.tolerance, claim.expected + claim.tolerance
    return (
        low if claim.direction != "at most" else -math.inf,
        high if claim.direction != "at least" else math.inf,
    )


def judge(claim: Claim, finding: Finding, minimum_seeds: int) -> tuple[Verdict, str]:
    """The verdict and its reason, by the rules at the top of this module."""
    if finding.untested or finding.low is None or finding.high is None:
        return "not tested", finding.untested
    low, high = supporting_range(claim)
    if finding.high < low or finding.low > high:
        return "not supported", "the whole interval is outside the supporting range"
    if finding.low < low or finding.high > high:
        # The edge of "it helps" is no difference at all: neither help nor harm is shown.
        nothing = 1 if claim.kind == "retention" else 0
        if claim.direction != "about" and claim.expected == nothing and claim.tolerance == 0:
            return "undecided", "no difference is shown: the interval holds help and harm alike"
        return "undecided", "the interval crosses the edge of the supporting range"
    if finding.seeds is not None and finding.seeds < minimum_seeds:
        return "undecided", f"inside the supporting range, but fewer than {minimum_seeds} seeds"
    if finding.incomplete:
        return "undecided", f"inside the supporting range, but {finding.incomplete}"
    return "supported", "the whole interval is inside the supporting range"


def find_size(claim: Claim, recipe: Recipe) -> Finding:
    """Parameter counts of the paper's two encoders."""
    record = benchmark_record(recipe, "size_speed")
    if record is None:
        return Finding(untested="no record of benchmark/size_speed")
    size = record.metrics["size"]
    count = {name: size[f"{name}/ours"]["parameters"] for name in ("bert", "distilbert")}
    if claim.kind == "smaller":
        value = 1 - count["distilbert"] / count["bert"]
        detail = f"{count['distilbert']:,} against {count['bert']:,} parameters"
    else:
        value = count[claim.model] / 1e6
        detail = f"{count[claim.model]:,} parameters"
    return Finding(
        value=value,
        low=value,
        high=value,
        interval="exact count",
        scale="paper size",
        detail=detail,
        records=("benchmark/size_speed",),
    )


def find_speed(claim: Claim, recipe: Recipe) -> Finding:
    """The least favourable ratio of BERT's time to DistilBERT's over threads and makers."""
    record = benchmark_record(recipe, "size_speed")
    if record is None:
        return Finding(untested="no record of benchmark/size_speed")
    settings = speed_rows(record)
    least = least_favourable(settings)
    who = "transformers'" if least["maker"] == "transformers" else "our"
    threads = f"{least['threads']} thread{'s' * (least['threads'] > 1)}"
    every = ", ".join(f"{row['ratio']:.2f}" for row in settings)
    return Finding(
        value=least["ratio"],
        low=least["bounds"][0],
        high=least["bounds"][1],
        interval=f"over {least['rounds']} passes" + (" and pairs" if least["over_pairs"] else ""),
        scale="paper size",
        detail=f"{who} implementation with {threads}; all: {every}",
        records=("benchmark/size_speed",),
    )


def models_of(claim: Claim, recipe: Recipe) -> list[str]:
    """The models of a recipe that a language claim is about, reference first where it has one."""
    if claim.kind == "order":
        return list(claim.order)
    roles = {"student": recipe.student, "teacher": recipe.teacher}
    if claim.kind == "above_printed":
        return [recipe.student]
    names = [roles.get(name, name) for name in (claim.reference, claim.model)]
    if "counterpart" in names:
        [named] = [name for name in names if name != "counterpart"]
        other = counterpart(recipe, named) if named in recipe.models else None
        names = [(other or name) if name == "counterpart" else name for name in names]
    return names


def measure(claim: Claim, recipe: Recipe, models: list[str], tasks: list[str]) -> dict:
    """Value, interval and least number of seeds of a language claim on tasks that are there."""
    if claim.kind == "order":
        gaps = [row["gap"] for row in order_rows(recipe, models)]
        # All steps must be shown: one that is refuted decides, else the one that is shown least.
        least = min(gaps, key=lambda gap: (gap["high"] >= 0, gap["low"]))
        found = {end: least[end] for end in ("estimate", "low", "high")}
        seeds = min(min(gap["seeds"].values()) for gap in gaps)
        return {**found, "seeds": seeds, "factor": 100}
    scores = crossed_scores(recipe, models, tasks)
    seeds = min(s.seeds for s in scores.values())
    if claim.kind == "retention":
        return statistics.ratio_interval(scores) | {"seeds": seeds, "factor": 1}
    if claim.kind == "gap":
        return statistics.gap_interval(scores) | {"seeds": seeds, "factor": 100}
    table, row = claim.printed.split(".")
    printed = read_yaml(PAPER)[table][row]
    mean = sum(printed[task] for task in tasks) / len(tasks) / 100  # in percent, as printed
    found = statistics.score_interval(scores)
    above = {end: found[end] - mean for end in ("estimate", "low", "high")}
    return {**above, "seeds": seeds, "factor": 100}


def find_language(claim: Claim, recipe: Recipe) -> Finding:
    """A claim on scores, on those of its tasks that are recorded for all of its models."""
    models = models_of(claim, recipe)
    for name in models:
        if name not in recipe.models:
            return Finding(untested=f"this recipe has no model {name!r}")
    if len(models) == 2 and models[0] == models[1]:
        return Finding(untested=f"the student of this recipe is {models[0]!r} itself")
    if recipe.models[recipe.body(recipe.student)].extract is not None:
        return Finding(untested="the student of this recipe is cut from its teacher, not distilled")
    apart = set(GLUE) & set(recipe.tasks) - set(recipe.macro_tasks) if len(claim.tasks) > 1 else ()
    claimed = [task for task in (*claim.tasks, *claim.stand_in) if task not in apart]
    wanted = [task for task in claimed if task in recipe.tasks]
    tasks = [task for task in wanted if shared_seeds(recipe, models, task)]
    if not tasks:
        missing = "its records are missing" if wanted else "this recipe runs none of its tasks"
        return Finding(untested=missing)
    scale = f"{recipe.scale} scale"
    if claim.kind == "above_printed" and column_of(recipe) == "reduced":
        return Finding(untested=f"{scale}: printed scores are compared with at paper size only")
    try:
        found = measure(claim, recipe, models, tasks)
    except statistics.AtChanceError as error:
        return Finding(untested=str(error))
    own = [task for task in tasks if task in claim.tasks]
    labels = " against ".join(recipe.models[name].label for name in reversed(models))
    if claim.kind == "order":
        labels = " < ".join(recipe.models[name].label for name in models)
    lacking = f"on {len(own)} of the claim's {len(claim.tasks)} tasks"
    # An indication takes what is there; what decides needs half of the tasks.
    few = not own or (column_of(recipe) != "reduced" and 2 * len(own) < len(claim.tasks))
    over = "over seeds and examples" if found["seeds"] > 1 else "over examples, one seed"
    return Finding(
        value=found["factor"] * found["estimate"],
        low=found["factor"] * found["low"],
        high=found["factor"] * found["high"],
        interval=over,
        scale=scale,
        detail=f"{labels}; {', '.join(get_task(task).title for task in tasks)}",
        seeds=found["seeds"],
        incomplete=lacking if len(own) < len(claim.tasks) else "",
        untested=("only " + lacking) if few else "",
        records=tuple(
            f"finetune/{finetune_name(name, task, seed)}"
            for task in tasks
            for name in models
            for seed in shared_seeds(recipe, models, task)
        ),
    )


def find(claim: Claim, recipe: Recipe) -> Finding:
    """What the records of a recipe say about a claim."""
    if claim.kind == "none":
        return Finding(untested=claim.reason)
    if claim.kind == "speed":
        return find_speed(claim, recipe)
    size = claim.kind in ("smaller", "parameters")
    return (find_size if size else find_language)(claim, recipe)


def judge_all(recipe: Recipe, ledger: Ledger) -> list[dict]:
    """Every claim with value, interval, tolerance and verdict, ready for JSON.

    `column` says what kind of evidence it is, `column_verdict` and `column_reason` what the
    evidence says; `verdict` and `reason` are the same unless it is at reduced scale, which never
    decides.
    """
    rows = []
    for claim in ledger.claims:
        finding = find(claim, recipe)
        found_verdict, found_reason = judge(claim, finding, ledger.minimum_seeds)
        column = column_of(recipe)
        if finding.scale == "paper size" and column == "reduced":
            column = "replication"
        verdict, reason = found_verdict, found_reason
        if column == "reduced" and finding.value is not None:
            verdict, reason = "not tested", f"{finding.scale} is an indication only"
            reason += f", {finding.incomplete}" * bool(finding.incomplete)
        kept_back = {"reason", "model", "reference", "stand_in", "order", "printed"}
        fixed = claim.model_dump(exclude=kept_back)
        found = finding.model_dump(exclude={"untested"})
        rows.append(
            {
                **fixed,
                **found,
                "column": column,
                "column_verdict": found_verdict,
                "column_reason": found_reason,
                "verdict": verdict,
                "reason": reason,
            }
        )
    return rows


def verdict_rows(recipe: Recipe, name: str) -> list[dict]:
    """The recorded rows of `judge_all` of the recipe called `name`, beside `recipe`'s results.

    Empty without a record, and for one written before rows had a column.
    """
    path = recipe.folder.parent / name / "claims" / "verdicts.json"
    rows = read_record(path).metrics["claims"] if path.exists() else []
    return [row for row in rows if "column" in row]


def evidence_by_column(recipe: Recipe, ledger: Ledger, rows: list[dict]) -> list[dict]:
    """For each claim, what every kind of evidence says: the three columns of the ledger.

    `rows` are the recipe's own; the other recipes of a column speak by their committed records,
    in the order of the ledger, after the recipe itself. A cell is the first that tested the claim:
    {"verdict", "recipe", "value", "low", "high", "detail"}, or {"verdict": "not tested",
    "reason"}.
    """
    every = {recipe.name: rows}
    for name in (name for names in ledger.columns.values() for name in names):
        every.setdefault(name, verdict_rows(recipe, name))
    return [
        {
            "id": claim.id,
            "title": claim.title,
            "unit": claim.unit,
            **{
                column: _column_cell(claim, column, [recipe.name, *names], every)
                for column, names in ledger.columns.items()
            },
        }
        for claim in ledger.claims
    ]


def _column_cell(claim: Claim, column: Column, names: list[str], every: dict) -> dict:
    if claim.kind == "none":
        return {"verdict": "not tested", "reason": claim.reason}
    reasons = []
    for name in dict.fromkeys(names):
        for row in every[name]:
            if (row["id"], row["column"]) != (claim.id, column):
                continue
            if row["column_verdict"] != "not tested":
                shown = {key: row[key] for key in ("value", "low", "high", "detail")}
                return {"verdict": row["column_verdict"], "recipe": name, **shown}
            reasons.append(f"{name}: {row['column_reason']}")
    return {"verdict": "not tested", "reason": "; ".join(reasons) or "not run"}


def first_settings(recipe: Recipe, ledger: Ledger) -> dict | None:
    """The claims as the recipe's first settings had them, with title and unit; None without any."""
    if not (found := earlier_runs(recipe).get("first_settings")):
        return None
    by_id = {claim.id: claim for claim in ledger.claims}
    rows = [
        {"id": name, "title": by_id[name].title, "unit": by_id[name].unit, **values}
        for name, values in found["claims"].items()
    ]
    return found | {"claims": rows}
