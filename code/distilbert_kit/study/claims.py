"""The paper's claims, judged on the records of a recipe.

A claim of `recipes/claims.yaml` names an expected value and a tolerance, which span the values
that would support it: expected - tolerance and more ("at least"), expected + tolerance and less
("at most"), or what lies between the two ("about").

    supported      the whole 95 % interval of the measured value is inside (an exact count is its
                   own interval), and language claims have at least `minimum_seeds` seeds
    partly         the interval crosses the edge, or it is inside with too few seeds
    not supported  the whole interval is outside
    not tested     a model, task or record is missing; or the claim is about language understanding
                   and the recipe is not at paper scale or its student is not distilled. What such
                   a recipe measured is shown as an indication and never decides

Size and speed are measured at paper size in every recipe, so these claims are always tested.
Intervals: retention from a bootstrap over seeds and examples; gaps the wider one of the paired
bootstrap over examples and Student's interval over seeds; speed from the range over
passes and a bootstrap over pairs, the wider, and the least favourable of all settings decides.
"""

import math
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from ..errors import UserError
from ..paths import RECIPES
from ..settings import Strict
from .evidence.scores import (
    benchmark_record,
    compare,
    counterpart,
    recorded_seeds,
    retention_interval,
)
from .evidence.speed import speed_rows
from .recipes import Recipe

Verdict = Literal["supported", "partly", "not supported", "not tested"]
LANGUAGE = ("retention", "gap")


class Claim(Strict):
    """One claim and what would support it; fields as in the head of `recipes/claims.yaml`."""

    id: str
    title: str
    quote: str
    where: str
    metric: str
    kind: Literal["smaller", "parameters", "speed", "retention", "gap", "none"]
    unit: Literal["percent", "times", "millions", "points", "ratio", "megabytes"]
    expected: float
    tolerance: float = Field(ge=0)
    direction: Literal["about", "at least", "at most"]
    model: str = "student"
    reference: str = "teacher"
    tasks: tuple[str, ...] = ()
    stand_in: tuple[str, ...] = ()
    reason: str = ""


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
    claims: list[Claim]
    deviations: list[Deviation]


class Finding(Strict):
    """What the records say about a claim: a value with its interval, or why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    scale: str = ""
    detail: str = ""
    seeds: int | None = None
    untested: str = ""
    records: tuple[str, ...] = ()


def load_ledger() -> Ledger:
    """Read and check `recipes/claims.yaml`."""
    try:
        return Ledger.model_validate(yaml.safe_load((RECIPES / "claims.yaml").read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"claims.yaml: {where}: {first['msg']}; mend this key") from None


def supporting_range(claim: Claim) -> tuple[float, float]:
    """Lowest and highest value that support the claim."""
    low, high = claim.expected - claim.tolerance, claim.expected + claim.tolerance
    return (
        low if claim.direction != "at most" else -math.inf,
        high if claim.direction != "at least" else math.inf,
    )


def judge(claim: Claim, finding: Finding, minimum_seeds: int) -> tuple[Verdict, str]:
    """The verdict and its reason, by the rules at the top of this module."""
    if finding.untested or finding.value is None:
        return "not tested", finding.untested
    low, high = supporting_range(claim)
    if finding.high < low or finding.low > high:
        return "not supported", "the whole interval is outside the supporting range"
    if finding.low < low or finding.high > high:
        return "partly", "the interval crosses the edge of the supporting range"
    if finding.seeds is not None and finding.seeds < minimum_seeds:
        return "partly", f"inside the supporting range, but fewer than {minimum_seeds} seeds"
    return "supported", "the whole interval is inside the supporting range"


def grouped(number: int) -> str:
    """Digits in groups of three, with narrow spaces that do not break."""
    return f"{number:,}".replace(",", "\u202f")


def find_size(claim: Claim, recipe: Recipe) -> Finding:
    """Parameter counts of the paper's two encoders."""
    record = benchmark_record(recipe, "size_speed")
    if record is None:
        return Finding(untested="no record of benchmark/size_speed")
    size = record.metrics["size"]
    count = {name: size[f"{name}/ours"]["parameters"] for name in ("bert", "distilbert")}
    if claim.kind == "smaller":
        value = 1 - count["distilbert"] / count["bert"]
        detail = f"{grouped(count['distilbert'])} against {grouped(count['bert'])} parameters"
    else:
        value = count[claim.model] / 1e6
        detail = f"{grouped(count[claim.model])} parameters"
    return Finding(
        value=value,
        low=value,
        high=value,
        interval="exact count",
        scale="paper size",
        detail=detail,
        records=["benchmark/size_speed"],
    )


def find_speed(claim: Claim, recipe: Recipe) -> Finding:
    """The least favourable ratio of BERT's time to DistilBERT's over threads and makers.

    The ratio of two totals, as the paper's; its bounds are the wider ones of the range over the
    passes and the interval over the pairs, where the record has that.
    """
    record = benchmark_record(recipe, "size_speed")
    if record is None:
        return Finding(untested="no record of benchmark/size_speed")
    settings = speed_rows(record)
    for row in settings:
        over_pairs = row["over_pairs"] or {}
        row["bounds"] = [
            min(row["low"], over_pairs.get("low", row["low"])),
            max(row["high"], over_pairs.get("high", row["high"])),
        ]
    least = min(settings, key=lambda row: row["bounds"][0])
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
        records=["benchmark/size_speed"],
    )


def measure_language(claim: Claim, recipe: Recipe, model: str, reference: str) -> Finding | None:
    """Value and interval of a language claim on the tasks that are there; None without any."""

    def recorded(task: str) -> bool:
        return all(recorded_seeds(recipe, name, task) for name in (model, reference))

    wanted = [task for task in (*claim.tasks, *claim.stand_in) if task in recipe.tasks]
    if not (tasks := [task for task in wanted if recorded(task)]):
        return None
    common = {
        "scale": f"{recipe.scale} scale",
        "records": [
            f"finetune/{name}-{task}-{seed}"
            for task in tasks
            for name in (reference, model)
            for seed in recorded_seeds(recipe, name, task)
        ],
    }
    labels = [recipe.models[name].label for name in (model, reference)]
    common["detail"] = f"{labels[0]} against {labels[1]}; {', '.join(tasks)}"
    if claim.kind == "retention":
        found = retention_interval(recipe, model, reference, tasks)
        seeds = min(found["seeds"].values())
        over = "over seeds and examples" if seeds > 1 else "over examples, one seed"
        found = {name: found[name] for name in ("low", "high")} | {"value": found["estimate"]}
        return Finding(**common, **found, interval=over, seeds=seeds)
    row = compare(recipe, model, reference, tasks[0])[0]
    examples, seeds = row["gap"], row["gap_over_seeds"]
    low, high, over = examples["low"], examples["high"], "over examples, one seed"
    if seeds["n"] > 1:
        low, high = min(low, seeds["low"]), max(high, seeds["high"])
        over = "the wider of seeds and examples"
    found = {"value": 100 * examples["difference"], "low": 100 * low, "high": 100 * high}
    return Finding(**common, **found, interval=over, seeds=seeds["n"])


def find_language(claim: Claim, recipe: Recipe) -> Finding:
    """A claim on scores: tested at paper scale with a distilled student, else an indication."""
    roles = {"student": recipe.student, "teacher": recipe.teacher}
    names = [roles.get(name, name) for name in (claim.model, claim.reference)]
    if claim.model == "counterpart" and claim.reference in recipe.models:
        names[0] = counterpart(recipe, claim.reference) or claim.model
    for name in reversed(names):
        if name not in recipe.models:
            return Finding(untested=f"this recipe has no model {name!r}")
    if names[0] == names[1]:
        return Finding(untested=f"the student of this recipe is {names[0]!r} itself")
    reasons = []
    if missing := [task for task in claim.tasks if task not in recipe.tasks]:
        which = ", ".join(missing) if len(missing) < 4 else f"{len(missing)} of the claim's tasks"
        reasons.append(f"this recipe does not run {which}")
    if recipe.scale != "paper":
        reasons.append(f"{recipe.scale} scale")
    if recipe.models[recipe.body(recipe.student)].extract is not None:
        reasons.append("the student of this recipe is cut from its teacher, not distilled")
    try:
        found = measure_language(claim, recipe, *names)
    except UserError as error:  # such as a teacher at chance
        return Finding(untested=str(error))
    if found is None:
        return Finding(untested="; ".join(reasons) or "its records are missing")
    absent = [t for t in claim.tasks if not all(recorded_seeds(recipe, n, t) for n in names)]
    if not reasons and absent:
        reasons.append(f"no records of {', '.join(absent)}")
    return found.model_copy(update={"untested": "; ".join(reasons)})


def find(claim: Claim, recipe: Recipe) -> Finding:
    """What the records of a recipe say about a claim."""
    if claim.kind == "none":
        return Finding(untested=claim.reason)
    if claim.kind == "speed":
        return find_speed(claim, recipe)
    return (find_language if claim.kind in LANGUAGE else find_size)(claim, recipe)


def judge_all(recipe: Recipe, ledger: Ledger) -> list[dict]:
    """Every claim with verdict, value, interval, scale, tolerance and reason, ready for JSON."""
    rows = []
    for claim in ledger.claims:
        finding = find(claim, recipe)
        verdict, reason = judge(claim, finding, ledger.minimum_seeds)
        fixed = claim.model_dump(exclude={"reason", "model", "reference", "stand_in"})
        found = finding.model_dump(exclude={"untested"})
        rows.append({**fixed, **found, "verdict": verdict, "reason": reason})
    return rows
