"""The paper's claims, judged on the records of a recipe.

A claim of `data/claims.yaml` names an expected value and a tolerance, which span the values
that would support it: expected - tolerance and more ("at least"), expected + tolerance and less
("at most"), or what lies between the two ("about", which is judged on both sides).

    supported      the whole 95 % interval of the measured value is inside (an exact count is its
                   own interval), with at least `minimum_seeds` seeds and all of the claim's tasks
    not supported  the whole interval is outside, with as many seeds and tasks; a score also needs a
                   student distilled on at least `minimum_tokens`: with few it refutes nothing
    undecided      the interval crosses the edge, or seeds, tasks or tokens are too few
    not tested     a model, task or record is missing, or fewer than half of the claim's tasks

Evidence is of one of three kinds, `column_of`: *reproduction*, by the authors' own weights;
*replication* at paper size, by models made here; *reduced* scale, which is an indication and
never decides: the verdict of a recipe at reduced scale on a language claim is "not tested". Size
and speed are measured at paper size in every recipe, so these claims are always tested.

Speed: the wider of the range over passes and a bootstrap over pairs, and the least favourable of
all settings decides. Intervals of scores follow the one rule of `study/statistics.py`. They cover
fine-tuning seeds and examples; what another distillation of a student that was distilled once would
give is not in them.
"""

import itertools
import math

from ..data.tasks import GLUE, get_task
from ..settings import Strict
from . import statistics
from .evidence.comparisons import counterpart, crossed_scores, order_rows, seeds_by_task
from .evidence.distillation import corpus_runs
from .evidence.history import benchmark_record, earlier_runs
from .evidence.speed import least_favourable, shape_rows, speed_rows
from .ledger import Claim, Column, Ledger, Verdict, paper
from .recipes import Recipe
from .specs import finetune_name

# What times the models of a claim on speed, and how its record is read.
TIMED = {"speed": ("size_speed", speed_rows), "shape": ("shape_speed", shape_rows)}
OF_FULL_SIZE = {"smaller", "parameters", *TIMED}  # measured at paper size in every recipe


class Finding(Strict):
    """What the records say about a claim: a value with its interval, or why there is none.

    `untested`: why there is nothing to judge. `incomplete`: which tasks are there, if not all.
    `tasks`: those that are recorded. `tokens`: the fewest that one of its models was distilled on;
    None for those that came distilled.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    scale: str = ""
    detail: str = ""
    seeds: int | None = None
    tasks: tuple[str, ...] = ()
    tokens: int | None = None
    incomplete: str = ""
    untested: str = ""
    records: tuple[str, ...] = ()


def column_of(recipe: Recipe) -> Column:
    """What kind of evidence the scores of a recipe are."""
    if recipe.scale != "paper":
        return "reduced"
    weights = (recipe.models[recipe.student].weights or "").partition("@")[0]
    theirs = weights.removeprefix("distilbert/") == "distilbert-base-uncased"
    return "reproduction" if theirs else "replication"


def supporting_range(claim: Claim) -> tuple[float, float]:
    """Lowest and highest value that support the claim."""
    low, high = claim.expected - claim.tolerance, claim.expected + claim.tolerance
    return (
        low if claim.direction != "at most" else -math.inf,
        high if claim.direction != "at least" else math.inf,
    )


def judge(claim: Claim, finding: Finding, ledger: Ledger) -> tuple[Verdict, str]:
    """The verdict and its reason, by the rules at the top of this module."""
    if finding.untested or finding.low is None or finding.high is None:
        return "not tested", finding.untested
    low, high = supporting_range(claim)
    outside = finding.high < low or finding.low > high
    if not outside and (finding.low < low or finding.high > high):
        # The edge of "it helps" is no difference at all: neither help nor harm is shown.
        nothing = 1 if claim.kind == "retention" else 0
        if claim.direction != "about" and claim.expected == nothing and claim.tolerance == 0:
            return "undecided", "no difference is shown: the interval holds help and harm alike"
        return "undecided", "the interval crosses the edge of what the claim allows"
    where = f"the whole interval is {'outside' if outside else 'inside'} what the claim allows"
    few = []
    if finding.seeds is not None and finding.seeds < ledger.minimum_seeds:
        seeds = f"{finding.seeds} seed{'s' * (finding.seeds > 1)}"
        few.append(f"{seeds} instead of {ledger.minimum_seeds}")
    if finding.incomplete:
        few.append(finding.incomplete)
    if outside and finding.tokens is not None and finding.tokens < ledger.minimum_tokens:
        least = f"{ledger.minimum_tokens / 1e6:,.0f}"
        few.append(f"{finding.tokens / 1e6:,.1f} instead of {least} million tokens of distillation")
    if few:
        return "undecided", f"{where}, but too little was run to decide: {', '.join(few)}"
    return "not supported" if outside else "supported", where


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
    """The least favourable ratio over threads and makers, of the two models that a stage times."""
    stage, rows = TIMED[claim.kind]
    record = benchmark_record(recipe, stage)
    if record is None:
        return Finding(untested=f"no record of benchmark/{stage}")
    settings = rows(record)
    least = least_favourable(settings)
    who = "transformers'" if least["maker"] == "transformers" else "our"
    threads = f"{least['threads']} thread{'s' * (least['threads'] > 1)}"
    every = ", ".join(f"{row['ratio']:.2f}" for row in settings)
    return Finding(
        value=least["ratio"],
        low=least["bounds"][0],
        high=least["bounds"][1],
        interval=f"range of {least['rounds']} passes"
        + (" and interval over pairs, the wider" if least["over_pairs"] else ""),
        scale="paper size",
        detail=f"{who} implementation with {threads}; all: {every}",
        records=(f"benchmark/{stage}",),
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
        gaps = [row["gap"] for row in order_rows(recipe, models, tasks)]
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
    printed = paper()[table][row]
    mean = sum(printed[task] for task in tasks) / len(tasks) / 100  # in percent, as printed
    found = statistics.score_interval(scores)
    above = {end: found[end] - mean for end in ("estimate", "low", "high")}
    return {**above, "seeds": seeds, "factor": 100}


def _unfit(recipe: Recipe, models: list[str]) -> str:
    """Why a recipe cannot test a claim about these models; "" if it can."""
    for name in reversed(models):  # the claim's own before its counterpart
        if name not in recipe.models:
            return f"this recipe has no model {name!r}"
    if len(models) == 2 and models[0] == models[1]:
        return f"the student of this recipe is {models[0]!r} itself"
    if recipe.models[recipe.body(recipe.student)].extract is not None:
        return "the student of this recipe is cut from its teacher, not distilled"
    return ""


def _tokens_read(recipe: Recipe, bodies: set[str]) -> dict[str, int]:
    """On how many tokens each of these models was distilled, where that is recorded."""
    return {
        run.cell["model"]: run.metrics["train_tokens"]
        for run in corpus_runs(recipe).values()
        if run.stage == "distill" and run.cell["model"] in bodies
    }


def find_language(claim: Claim, recipe: Recipe) -> Finding:
    """A claim on scores, on those of its tasks that are recorded for all of its models."""
    models = models_of(claim, recipe)
    if unfit := _unfit(recipe, models):
        return Finding(untested=unfit)
    apart = set(GLUE) & set(recipe.tasks) - set(recipe.macro_tasks) if len(claim.tasks) > 1 else ()
    claimed = [task for task in (*claim.tasks, *claim.stand_in) if task not in apart]
    wanted = [task for task in claimed if task in recipe.tasks]
    tasks = list(seeds_by_task(recipe, models, wanted))
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
    lacking = f"{len(own)} of the claim's {len(claim.tasks)} tasks"
    bodies = {recipe.body(name) for name in models}
    read = _tokens_read(recipe, bodies)
    if lost := sorted(name for name in bodies - read.keys() if recipe.models[name].distill):
        return Finding(untested=f"the record of the distillation of {lost[0]!r} is missing")
    # An indication takes what is there; what decides needs half of the tasks.
    few = not own or (column_of(recipe) != "reduced" and 2 * len(own) < len(claim.tasks))
    over = "over seeds and examples" if found["seeds"] > 1 else "over examples, one seed"
    return Finding(
        value=found["factor"] * found["estimate"],
        low=found["factor"] * found["low"],
        high=found["factor"] * found["high"],
        interval=over,
        scale=scale,
        detail=f"{labels}, on {', '.join(get_task(task).title for task in tasks)}",
        seeds=found["seeds"],
        tasks=tuple(tasks),
        tokens=min(read.values(), default=None),
        incomplete=lacking if len(own) < len(claim.tasks) else "",
        untested=("only " + lacking) if few else "",
        records=tuple(
            dict.fromkeys(
                f"finetune/{finetune_name(name, task, seed)}"
                for group in (itertools.pairwise(models) if claim.kind == "order" else [models])
                for task, seeds in seeds_by_task(recipe, group, tasks).items()
                for name in group
                for seed in seeds
            )
        ),
    )


def find(claim: Claim, recipe: Recipe) -> Finding:
    """What the records of a recipe say about a claim."""
    if claim.kind == "none":
        return Finding(untested=claim.reason)
    if claim.kind in TIMED:
        return find_speed(claim, recipe)
    return (find_size if claim.kind in OF_FULL_SIZE else find_language)(claim, recipe)


def judge_all(recipe: Recipe, ledger: Ledger) -> list[dict]:
    """Every claim with value, interval, tolerance and verdict, ready for JSON.

    `column` says what kind of evidence it is, `column_verdict` and `column_reason` what the
    evidence says; `verdict` and `reason` are the same unless it is at reduced scale, which never
    decides.
    """
    rows = []
    for claim in ledger.claims:
        finding = find(claim, recipe)
        found_verdict, found_reason = judge(claim, finding, ledger)
        column = column_of(recipe)
        if claim.kind in OF_FULL_SIZE and column == "reduced":
            column = "replication"
        verdict, reason = found_verdict, found_reason
        if column == "reduced" and finding.value is not None:
            verdict, reason = "not tested", f"{finding.scale} is an indication only"
            reason += f", {finding.incomplete}" * bool(finding.incomplete)
        kept_back = {"reason", "model", "reference", "tasks", "stand_in", "order", "printed"}
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


def earlier_claims(recipe: Recipe, ledger: Ledger) -> dict | None:
    """The recipe's `earlier_claims`, each with title and unit; None where it has none."""
    if not (found := earlier_runs(recipe).get("earlier_claims")):
        return None
    by_id = {claim.id: claim for claim in ledger.claims}
    rows = [
        {
            "id": name,
            "title": by_id[name].title,
            "unit": by_id[name].unit,
            "values": [run["claims"][name] for run in found["runs"]],
        }
        for name in found["runs"][0]["claims"]
    ]
    return found | {"claims": rows}
