"""Judge the paper's claims on the records of a recipe, and write the verdict record.

    python code/claims.py --recipe quick

`--plan` takes the `plan_key` of the recipe that the experiment graph read. A recipe that was edited
while its cells ran is refused: its records would mix two recipes.

The rules are those of `distilbert_kit/study/claims.py`; the claims stand in `data/claims.yaml`.
"""

from distilbert_kit.script import argument_parser, entry_point

from distilbert_kit.data.tasks import TASKS
from distilbert_kit.errors import UserError
from distilbert_kit.study.cells import plan_key
from distilbert_kit.study.claims import earlier_claims, judge_all
from distilbert_kit.study.evidence.history import finetune_records
from distilbert_kit.study.figures import save_table
from distilbert_kit.study.ledger import (
    decided,
    evidence_by_column,
    load_ledger,
    summary_at_paper_size,
    verdict_key,
)
from distilbert_kit.study.publication import publication_key
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import recording
from distilbert_kit.study.tables import summary


@entry_point
def main() -> None:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--plan", help="refuse the recipe if its cells have changed")
    arguments = parser.parse_args()
    recipe, ledger = load_recipe(arguments.recipe), load_ledger()
    if arguments.plan not in (None, plan_key(recipe)):
        raise UserError(f"recipe {recipe.name}: changed while its cells ran; run make again")
    rules = {"fixed", "minimum_seeds", "minimum_tokens", "rules_changed", "rules_changed_on"}
    settings = ledger.model_dump(mode="json", include=rules)
    with recording(
        recipe.folder / "claims" / "verdicts.json",
        stage="claims",
        cell={"recipe": recipe.name},
        scale=recipe.scale,
        recipe=recipe.name,
        settings=settings,
        key=verdict_key(recipe, ledger),
    ) as draft:
        rows = judge_all(recipe, ledger)
        draft.metrics = {"claims": rows}
        if recipe.scale == "paper" and finetune_records(recipe):
            draft.metrics["summary"] = summary(recipe)
    told = summary_at_paper_size(recipe, ledger)
    shown = [recipe.name, *([told["name"]] if told else [])]
    deviations = [
        row.model_dump() | {"recipes": [name for name in shown if name in row.recipes]}
        for row in ledger.deviations
        if set(shown) & set(row.recipes)
    ]
    (recipe.folder / "notebooks").mkdir(exist_ok=True)  # they run next; papermill makes no folder
    columns = evidence_by_column(recipe, ledger, rows)
    table = {
        **settings,
        "claims": rows,
        "columns": columns,
        "decided": decided(columns),
        "paper_size": told,
        "deviations": deviations,
        "earlier_claims": earlier_claims(recipe, ledger),
        "publication_key": publication_key(recipe),  # of what the tables and figures are made of
        "task_titles": {name: task.title for name, task in TASKS.items()},
    }
    save_table(recipe, "claims", table)
    for row in rows:
        print(f"{row['verdict']:14} {row['title']}: {row['reason']}")


if __name__ == "__main__":
    main()
