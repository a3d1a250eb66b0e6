"""The tables that notebooks write and report and poster read, each by the name of its file.

A function reads the records of a recipe and returns plain data, ready for JSON: `records` are the
cells it rests on, `scale` is that of its figures. Scores and shares are fractions (0.91), times
seconds unless their name says otherwise; what a recipe does not have is an empty list or None.
"""

from collections.abc import Sequence

import pandas as pd

from .cells import benchmark_cell, model_cell
from .evidence import latency as latency_evidence, speed
from .evidence.comparisons import (
    ablation_rows,
    compare,
    guessing_scores,
    macro_rows,
    mean_gap,
    mean_over_control,
    order_rows,
    over_control,
    seeds_by_task,
)
from .evidence.distillation import budget_rows, corpus_runs, token_curve, validation_rows
from .evidence.history import (
    benchmark_record,
    csv_records,
    earlier_runs,
    finetune_records,
    present_records,
    provenance,
)
from .evidence.lost import cross_rows, error_rows, lost_rows, students
from .evidence.scores import (
    confusion_rows,
    main_scores,
    recorded_main_models,
    score_rows,
)
from .evidence.sensitivity import one_answer_runs, seeds_needed, sensitivity
from .inputs import public_name
from .ledger import (
    decided,
    evidence_by_column,
    load_ledger,
    paper,
    summary_at_paper_size,
    verdict_rows,
)
from .recipes import Recipe
from .specs import finetune_name
from .tuning import held_out_scores, tuning_rows


def scale_of(recipe: Recipe) -> str:
    """The scale of a recipe's own models, in words."""
    return f"{recipe.scale} scale"


def size_speed(recipe: Recipe) -> dict:
    """The paper's Table 3, size and time of its two models, and `speed.shapes`."""
    record = benchmark_cell(recipe, "size_speed").read_record()
    metrics, measured, rows = record.metrics, record.measured, speed.speed_rows(record)
    keys = ("weights", "head", "text", "pairs", "passes", "mean_tokens")
    shapes = speed.shapes(benchmark_record(recipe, "shape_speed"))
    return {
        "records": ["benchmark/size_speed", *["benchmark/shape_speed"] * (shapes is not None)],
        "scale": "paper size",
        "conditions": {key: metrics[key] for key in (*keys, "longest")},
        "machine": measured.machine,
        "size": speed.size_rows(record),
        "rows": rows,
        "least_favourable": speed.least_favourable(rows),
        "flops": metrics["flops"],
        "flops_ratio": metrics["flops_ratio"],
        "shapes": shapes,
    }


def inference_speed(recipe: Recipe) -> dict:
    """DistilBERT here beside that of transformers, with the same weights."""
    record = benchmark_cell(recipe, "inference_speed").read_record()
    return {
        "records": ["benchmark/inference_speed"],
        "scale": "paper size",
        **{key: record.metrics[key] for key in ("pairs", "text", "padding")},
        "largest_logit_difference": record.measured.extra["largest_logit_difference"],
        "rows": speed.inference_rows(record),
    }


def training_speed(recipe: Recipe) -> dict:
    """Fine-tuning beside transformers' Trainer; no rows where the recipe does not measure it."""
    asked = recipe.training_speed
    record = benchmark_record(recipe, "training_speed") if asked else None
    return {
        "records": ["benchmark/training_speed"] if record else [],
        "scale": scale_of(recipe),
        "weights": public_name(asked.weights) if asked else None,
        "examples": record.metrics["examples"] if record else None,
        "batch_size": record.metrics.get("batch_size") if record else None,
        "bf16": speed.bf16_note(record),
        "rows": speed.training_rows(record) if record else [],
    }


def deployment(recipe: Recipe) -> dict:
    """Exported and quantised models, questions answered in a second, models made of a CSV.

    `int8`: `quantized_rows` of the recipe `int8_recipe`: another one at paper size that has any,
    else this one.
    """
    csv, at_paper_size = made_of_csv(recipe), summary_at_paper_size(recipe, load_ledger())
    own, other = speed.quantized_rows(recipe), at_paper_size["int8"] if at_paper_size else []
    return {
        "records": sorted({row["record"] for row in (*own, *csv)}),
        "scale": scale_of(recipe),
        "int8": other or own,
        "int8_recipe": at_paper_size["name"] if at_paper_size and other else recipe.name,
        "int8_scale": "paper size" if other else scale_of(recipe),
        "csv": csv,
        "answering": speed.answering(benchmark_record(recipe, "question_answering_speed")),
    }


def made_of_csv(recipe: Recipe) -> list[dict]:
    """For each of `csv_records` its models, with size and accuracy over the seeds."""
    return [
        {
            "record": name,
            "csv": record.cell["csv"],
            "seeds": len(record.cell["seeds"]),
            "tested": next(used.rows for used in record.data if used.name.endswith("/test")),
            **{key: record.settings[key] for key in ("teacher", "epochs", "max_length")},
            "models": [
                {
                    "model": model,
                    "milliseconds": record.measured.extra["milliseconds_per_text"][model],
                }
                | record.metrics[model]["size"]
                | accuracy
                for model, accuracy in record.metrics["accuracy"].items()
            ],
        }
        for name, record in csv_records(recipe).items()
    ]


def scores(recipe: Recipe) -> dict:
    """Scores, their means, and each model beside the teacher.

    `over_control` is the student beside what it was distilled from: no row, if it was not.
    `confusion` has the main models only. `first_squad`: exact match on SQuAD of a shorter training
    (`data/earlier_runs.yaml`).
    """
    main, errors = recorded_main_models(recipe), error_rows(recipe)
    others = [model for model in recipe.models if model != recipe.teacher]
    return {
        "records": list(finetune_records(recipe)),
        "scale": scale_of(recipe),
        "rows": score_rows(recipe),
        "macro": macro_rows(recipe),
        "guessing": guessing_scores(recipe),
        "comparisons": [row for model in others for row in compare(recipe, model, recipe.teacher)],
        "over_control": over_control(recipe),
        "mean_over_control": mean_over_control(recipe),
        "one_answer": one_answer_runs(recipe),
        "needed": seeds_needed(recipe),
        "first_squad": earlier_runs(recipe).get("first_squad"),
        "errors": errors,
        "confusion": [row for row in confusion_rows(recipe) if row["model"] in main],
        "errors_figure": bool(errors),
    }


def kept(recipe: Recipe, macro: Sequence[dict]) -> dict:
    """What a student keeps of its teacher's mean: {"scale", "tasks", "estimate", "low", "high"}.

    That of models of paper size once they are tested, else of the recipe's own in its `macro_rows`:
    without tasks and the last three where it has none either.
    """
    verdicts = verdict_rows(recipe, recipe.name)
    if found := decided(evidence_by_column(recipe, load_ledger(), verdicts)):
        share = {"estimate": found["value"], "low": found["low"], "high": found["high"]}
        return {"scale": "paper size", "tasks": found["tasks"], **share}
    for row in macro:
        if row["model"] == recipe.student and row.get("retention"):
            return {"scale": scale_of(recipe), "tasks": row["tasks"], **row["retention"]}
    return {"scale": scale_of(recipe), "tasks": []}


def training(recipe: Recipe) -> dict:
    """Settings and course of every fine-tuning, and the trials on held-out training rows."""
    runs = finetune_records(recipe)
    return {
        "records": list(runs),
        "scale": scale_of(recipe),
        "settings": {task: recipe.shown_settings(task) for task in recipe.tasks},
        "tuning": tuning_rows(recipe),
        "held_out": held_out_scores(recipe),
        "runs": [
            {
                "name": name,
                "updates": record.metrics.get("updates"),
                "examples": record.metrics.get("train_examples"),
                "seconds": record.measured.extra.get("train_seconds"),
                "examples_per_second": record.measured.extra.get("train_examples_per_second"),
                "last_loss": record.metrics["history"][-1]["loss"],
            }
            for name, record in runs.items()
        ],
    }


def study(recipe: Recipe) -> dict:
    """What the recipe is, its models with their parameters, and all that its results rest on."""
    present = present_records(recipe)

    def parameters(model: str) -> int | None:
        cell = model_cell(recipe, model)
        record = present.get(f"{cell.stage}/{cell.name}") if cell else None
        return record.metrics.get("parameters") if record else None

    return {
        **recipe.model_dump(mode="json", include={"name", "title", "scale", "seeds", "tasks"}),
        "teacher": recipe.teacher,
        "student": recipe.student,
        "control": recipe.control,
        "main": recorded_main_models(recipe),
        "models": [
            {"name": name, **spec.model_dump(mode="json"), "parameters": parameters(name)}
            for name, spec in recipe.models.items()
        ],
        "evidence": provenance(recipe),
    }


def at_control_rate(recipe: Recipe) -> list[dict]:
    """Other students beside the control, where the learning rate chosen for both is one.

    {"model", "rows": `compare` of the two}; the judged student has its own, `over_control`.
    """
    rates = {row["model"]: row["learning_rate"] for row in tuning_rows(recipe) if row["chosen"]}
    control = recipe.control
    if control is None or control not in rates:
        return []
    return [
        {"model": model, "rows": compare(recipe, model, control)}
        for model in recorded_main_models(recipe)
        if model not in (recipe.teacher, recipe.student, control)
        and rates.get(model) == rates[control]
    ]


def summary(recipe: Recipe) -> dict:
    """What the report on another recipe shows of this one: `study`, and parts of other tables.

    Of `scores` the main models' rows on first splits; "gaps": `compare` of student and teacher;
    "over_text_only": `compare` of the student and the first that was not `taught`; "agreement": of
    `lost_rows`; "settings" and "tuning" of fine-tuning; "corpus": `validation_rows`; "curve":
    `token_curve`; "ablation": `ablation_rows`; "at_control_rate", "sensitivity" and
    "training_speed" as there; "int8": `quantized_rows`; "first_runs": of `data/earlier_runs.yaml`.
    """
    parts = ablation_rows(recipe)
    alone = next((row["model"] for row in parts if not row["taught"]), None)
    likeness = ("model", "task", "split", "seeds", "agreement", "teacher_agreement")
    keys = ("model", "label", "task", "metric", "primary", "examples", "interval")
    over_seeds = ("seeds", "values", "over_seeds")
    rows = main_scores(recipe, score_rows(recipe))
    return study(recipe) | {
        "rows": [{key: row[key] for key in (*keys, *over_seeds)} for row in rows],
        "macro": macro_rows(recipe),
        "macro_tasks": recipe.macro_tasks,
        "guessing": guessing_scores(recipe),
        "gaps": compare(recipe, recipe.student, recipe.teacher),
        "over_control": over_control(recipe),
        "mean_over_control": mean_over_control(recipe),
        "settings": {task: recipe.shown_settings(task) for task in recipe.tasks},
        "tuning": tuning_rows(recipe),
        "at_control_rate": at_control_rate(recipe),
        "over_text_only": compare(recipe, recipe.student, alone) if alone else [],
        "agreement": [
            {key: row[key] for key in likeness}
            for name in students(recipe)
            for row in lost_rows(recipe, name, recipe.teacher)
        ],
        "corpus": validation_rows(recipe),
        "curve": token_curve(recipe),
        "ablation": parts,
        "sensitivity": sensitivity(recipe, load_ledger().minimum_seeds),
        "int8": speed.quantized_rows(recipe),
        "training_speed": training_speed(recipe),
        "first_runs": earlier_runs(recipe).get("first_runs"),
    }


def distillation(recipe: Recipe) -> dict:
    """Training on the corpus: text, settings, what was gained, and what a step costs."""
    present, runs, budgets = present_records(recipe), corpus_runs(recipe), budget_rows(recipe)
    spec = recipe.models[recipe.student].distill
    step = speed.distillation_step(present.get("benchmark/distillation_speed"))
    settings = {"pretrain": recipe.pretrain} if recipe.pretrain else {}
    if spec:
        settings[recipe.student] = recipe.distill_for(recipe.student)
    return {
        "records": [f"{record.stage}/{model}" for model, record in runs.items()],
        "scale": scale_of(recipe),
        "corpus": present["corpus/corpus"].metrics if "corpus/corpus" in present else {},
        "sources": recipe.corpus.source if recipe.corpus else [],
        "masking": recipe.corpus.model_dump(mode="json") if recipe.corpus else None,
        "settings": {name: each.model_dump(mode="json") for name, each in settings.items()},
        "loss": spec.loss.model_dump() if spec else None,
        "runs": validation_rows(recipe),
        "budgets": budgets,
        "budget_tasks": [
            task for task in recipe.tasks if sum(task in row["scores"] for row in budgets) > 2
        ],
        "curve": token_curve(recipe),
        "step": step,
        "preparing": speed.preparing(present.get("benchmark/corpus_speed")),
    }


# Rows of the paper's Table 4, by the name that a recipe gives to such a model.
ABLATION = {
    "without_ce": "without_l_ce",
    "without_cos": "without_l_cos",
    "without_mlm": "without_l_mlm",
    "random_initialisation": "random_initialisation",
}


def ablation(recipe: Recipe) -> dict:
    """The paper's Table 4, with what it printed (points, None where it has no such row).

    `undistilled`: the model that the rows' counterpart was distilled from beside it, as `mean_gap`.
    `order`: neighbours in the paper's order, from what costs most to what costs least.
    `earlier_runs`: the changes with fewer distillations a row (`data/earlier_runs.yaml`).
    """
    printed = paper()["table4_ablation"]
    rows = [
        row | {"paper": printed.get(ABLATION.get(row["model"]))} for row in ablation_rows(recipe)
    ]
    in_order = sorted(ABLATION, key=lambda name: printed[ABLATION[name]])
    pairs = [((row["reference"], row["model"]), row["tasks"]) for row in rows]
    undistilled = None
    if rows and (made := recipe.models[rows[0]["reference"]].distill):
        whole, start, tasks = rows[0]["reference"], made.student, rows[0]["tasks"]
        if found := mean_gap(recipe, start, whole, tasks):
            undistilled = {"model": start, "label": recipe.models[start].label} | found
            pairs.append(((whole, start), tasks))
    return {
        "records": sorted(
            {
                f"finetune/{finetune_name(name, task, seed)}"
                for models, tasks in pairs
                for task, seeds in seeds_by_task(recipe, models, tasks).items()
                for seed in seeds
                for name in models
            }
        ),
        "scale": scale_of(recipe),
        "rows": rows,
        "undistilled": undistilled,
        "earlier_runs": earlier_runs(recipe).get("earlier_ablations", []),
        "order": [
            row | {"labels": [recipe.models[row[end]].label for end in ("lower", "upper")]}
            for row in order_rows(recipe, in_order)
        ],
    }


def lost(recipe: Recipe) -> dict:
    """Student and control beside the teacher, example by example, and the errors of the three."""
    rows = [row for name in students(recipe) for row in lost_rows(recipe, name, recipe.teacher)]
    shown = [recipe.teacher, *students(recipe)]
    lengths = [row for row in error_rows(recipe, "tokens") if row["model"] in shown]
    keys = ("task", "split", "phenomenon", "examples", "model", "error")
    return {
        "records": sorted(
            {
                f"finetune/{finetune_name(name, row['task'], seed)}"
                for row in rows
                for name in (row["model"], recipe.teacher)
                for seed in row["seeds"]
            }
        ),
        "scale": scale_of(recipe),
        "rows": rows,
        "lengths": lengths,
        "phenomena": [
            {key: row[key] for key in keys} for row in error_rows(recipe) if row["model"] in shown
        ],
        "reliability_figure": any(
            row["model"] == recipe.student and row["calibration"] for row in rows
        ),
        "cross": cross_rows(recipe),
    }


def latency(recipe: Recipe) -> dict:
    """Latency by software, and scores against it; without the record scores and bytes only.

    `pareto` has the scores of another recipe at paper size where there is one: `pareto_recipe`.
    """
    record = benchmark_record(recipe, "latency")
    scored = summary_at_paper_size(recipe, load_ledger()) or summary(recipe)
    table: dict = {
        "records": ["benchmark/latency"] if record else [],
        "scale": "paper size and study size",
        "note": None if record else latency_evidence.NO_RECORD,
        "pareto": latency_evidence.pareto_rows(scored, record),
        "pareto_recipe": scored["name"],
    }
    if record is None:
        return table
    extra = record.measured.extra
    return table | {
        "machine": record.measured.machine,
        "backends": latency_evidence.BACKENDS,
        **{key: extra[key] for key in ("instructions", "rates", "starts", "texts")},
        "operators": latency_evidence.operator_rows(record),
        "rows": latency_evidence.rows_at(record),
        "not_measured": latency_evidence.not_measured(record),
        "over_eager": latency_evidence.over_eager(record),
        "int8_shares": latency_evidence.int8_shares(record),
        "student_faster": latency_evidence.student_faster(record),
        "first_run": earlier_runs(recipe).get("first_latency"),
        "on_device": latency_evidence.on_device_rows(record, load_ledger().expected),
    }


def frame(rows: Sequence[dict], columns: Sequence[str], digits: int = 3) -> pd.DataFrame:
    """Rows of a table to look at: these columns, the first as index; nested ones as "gap.low".

    A column that no row fills is left out. Without rows, one cell says so.
    """
    if not rows:
        return pd.DataFrame({"": ["This recipe has no records of this."]}, index=[""])
    found = pd.json_normalize(list(rows)).reindex(columns=columns).dropna(axis="columns", how="all")
    return found.set_index(columns[0]).round(digits)
