"""What the paper claims and printed, and what the recipes have recorded about it.

The claims are in `data/claims.yaml`; study/claims.py judges them on the records of a recipe.
"""

from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ..errors import UserError, first_problem
from ..files import content_key
from ..foreign import read_yaml
from ..paths import CLAIMS, PAPER
from ..settings import Strict
from .evidence.history import present_records
from .recipes import Recipe, load_recipe
from .records import read_record

Verdict = Literal["supported", "undecided", "not supported", "not tested"]
Column = Literal["reproduction", "replication", "reduced"]


class Claim(Strict):
    """One claim and what would support it; fields as in the head of `data/claims.yaml`."""

    id: str
    title: str
    quote: str
    where: str
    metric: str
    kind: Literal[
        "smaller",
        "parameters",
        "speed",
        "shape",
        "retention",
        "gap",
        "order",
        "above_printed",
        "none",
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
    """All of `data/claims.yaml`."""

    paper: dict[str, Any]
    fixed: date
    minimum_seeds: int
    minimum_tokens: int
    rules_changed: str
    rules_changed_on: date
    columns: dict[Column, list[str]]
    claims: list[Claim]
    deviations: list[Deviation]

    @property
    def expected(self) -> dict[str, float]:
        """What each claim says, in its unit, by its id."""
        return {claim.id: claim.expected for claim in self.claims}


def paper() -> dict:
    """What the paper printed: `data/paper.yaml`."""
    return read_yaml(PAPER)


def load_ledger() -> Ledger:
    """Read and check `data/claims.yaml`."""
    try:
        return Ledger.model_validate(read_yaml(CLAIMS))
    except ValidationError as error:
        what = first_problem(error, "claims")
        raise UserError(f"claims.yaml: {what}; mend this key") from None


def verdict_key(recipe: Recipe, ledger: Ledger) -> str:
    """The key of the recipe's verdict record: the rules, and the records that they judge."""
    judged = {name: record.sha256 for name, record in present_records(recipe).items()}
    return content_key([ledger.model_dump(mode="json"), judged])


def verdict_rows(recipe: Recipe, name: str) -> list[dict]:
    """The recorded rows of `judge_all` of the recipe called `name`; [] without a record."""
    return _verdicts(recipe, name).get("claims", [])


def _verdicts(recipe: Recipe, name: str) -> dict:
    """The metrics of the verdict record of the recipe called `name`, beside `recipe`'s results.

    {} without one. UserError for one of another recipe that judged other records, or by other
    rules, than are there now.
    """
    path = recipe.folder.parent / name / "claims" / "verdicts.json"
    if not path.exists():
        return {}
    record = read_record(path)
    if name != recipe.name and record.key != _current_key(path):
        raise UserError(
            f"{path}: not of the records and rules that are there; run claims.py --recipe {name}"
        )
    return record.metrics


@cache  # it reads all records of the recipe, and is asked for several times in a run
def _current_key(verdicts: Path) -> str:
    """The key of the verdict record at this path, if it were made now."""
    return verdict_key(load_recipe(verdicts.parents[1].name), load_ledger())


def summary_at_paper_size(recipe: Recipe, ledger: Ledger) -> dict | None:
    """`tables.summary` of the first other recipe at paper size that has scores, or None."""
    names = (*ledger.columns["reproduction"], *ledger.columns["replication"])
    found = (_verdicts(recipe, name).get("summary") for name in names if name != recipe.name)
    return next((summary for summary in found if summary), None)


def evidence_by_column(recipe: Recipe, ledger: Ledger, rows: list[dict]) -> list[dict]:
    """For each claim, what every kind of evidence says: the three columns of the ledger.

    `rows` are the recipe's own; the other recipes of a column speak by their verdict records, in
    the order of the ledger, after the recipe itself; UserError if one is not current. A cell is the
    first that tested the claim: {"verdict", "reason", "recipe", "value", "low", "high", "detail",
    "seeds", "tasks", "tokens", "incomplete"}, or {"verdict": "not tested", "reason"}.
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


def decided(columns: Sequence[dict]) -> dict | None:
    """The cell of `evidence_by_column` that decides the claim on understanding.

    That of the authors' weights if they were tested, else that of our models of paper size.
    """
    [claim] = (row for row in columns if row["id"] == "glue")
    cells = (claim[column] for column in ("reproduction", "replication"))
    return next((cell for cell in cells if cell["verdict"] != "not tested"), None)


def _column_cell(claim: Claim, column: Column, names: list[str], every: dict) -> dict:
    if claim.kind == "none":
        return {"verdict": "not tested", "reason": claim.reason}
    reasons = []
    for name in dict.fromkeys(names):
        for row in every[name]:
            if (row["id"], row["column"]) != (claim.id, column):
                continue
            if row["column_verdict"] != "not tested":
                said = {"verdict": row["column_verdict"], "reason": row["column_reason"]}
                keys = ("value", "low", "high", "detail", "seeds", "tasks", "tokens", "incomplete")
                return {**said, "recipe": name, **{key: row[key] for key in keys}}
            reasons.append(f"{name}: {row['column_reason']}")
    return {"verdict": "not tested", "reason": "; ".join(reasons) or "not run"}
