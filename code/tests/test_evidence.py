"""From invented records and predictions to rows: scores, errors, what is lost, the ablation."""

import numpy as np
import pandas as pd
import pytest
from invented import RECIPE, make_recipe, write_evidence

from distilbert_kit.errors import UserError
from distilbert_kit.study import cells as experiment, claims, statistics
from distilbert_kit.study.evidence import (
    comparisons,
    distillation,
    history,
    lost,
    scores,
    sensitivity,
)
from distilbert_kit.study.ledger import load_ledger
from distilbert_kit.study.records import read_record, recording, write_record


def test_ablation_compares_with_what_was_distilled_alike(results, tmp_path):
    spec = RECIPE["models"]["distilled"]["distill"]
    short = {"training": {"epochs": 0.25}}
    models = RECIPE["models"] | {
        "distilled_short": {"label": "short", "distill": spec | short},
        "without_ce": {"label": "no ce", "distill": spec | short | {"loss": {"ce": 0}}},
        "alone": {"label": "no counterpart", "distill": spec | {"training": {"epochs": 2}}},
    }
    recipe = make_recipe(tmp_path, models=models)
    write_evidence(recipe)
    rows = {row["model"]: row for row in comparisons.ablation_rows(recipe)}
    assert {name: row["reference"] for name, row in rows.items()} == {
        "without_ce": "distilled_short",
        "random_initialisation": "distilled",
    }
    mean = {
        row["model"]: row["over_seeds"]["mean"]
        for row in scores.score_rows(recipe)
        if row["primary"]
    }
    row = rows["random_initialisation"]
    assert row["change"] == pytest.approx(mean["random_initialisation"] - mean["distilled"])
    assert row["change"] < -0.1  # 0.6 against 0.8
    assert row["low"] < row["change"] < row["high"]  # with two seeds t is 12.7: nothing is shown
    assert rows["without_ce"]["low"] < 0 < rows["without_ce"]["high"]  # the same skill
    assert comparisons.counterpart(recipe, "undistilled") is None
    assert comparisons.counterpart(recipe, "alone") is None
    budgets = {row["model"]: row["tokens"] for row in distillation.budget_rows(recipe)}
    assert budgets == {"undistilled": 0, "distilled": 4500, "distilled_short": 2250, "alone": 18000}
    claim_ce = next(c for c in load_ledger().claims if c.id == "loss_ce")
    assert "no ce against short" in claims.find(claim_ce, recipe).detail
    order = comparisons.order_rows(recipe, ["random_initialisation", "without_ce", "without_mlm"])
    assert [(r["lower"], r["upper"]) for r in order] == [("random_initialisation", "without_ce")]
    assert order[0]["gap"]["estimate"] > 0.1  # 0.6 below 0.8
    adjusted = statistics.holm([row["p"] for row in rows.values()])
    assert [row["p_holm"] for row in rows.values()] == adjusted


def test_tasks_share_the_seeds_of_a_model_that_is_distilled_for_each(results, tmp_path):
    spec = RECIPE["models"]["distilled"]["distill"] | {"loss": {"ce": 0}}
    models = RECIPE["models"] | {
        "often": {"label": "often", "distill": spec | {"each_seed": True}},
        "taught": {"label": "taught", "task_distill": {"student": "often", "teacher": "teacher"}},
        "twin": {"label": "twin", "distill": RECIPE["models"]["distilled"]["distill"]},
    }
    recipe = make_recipe(tmp_path, models=models, tasks=["sentiment", "cola"])
    write_evidence(recipe)
    tasks = ["sentiment", "cola"]
    for names, shared in (
        (("teacher", "distilled"), False),
        (("distilled", "often"), True),
        (("taught", "distilled"), True),
    ):
        found = comparisons.crossed_scores(recipe, names, tasks)
        assert [scores.shared_seeds for scores in found.values()] == [shared, shared]
    rows = {row["model"]: row["distillations"] for row in comparisons.ablation_rows(recipe)}
    assert rows == {"often": 1, "random_initialisation": 1}  # a twin leaves nothing out
    experiment.finetune_cell(recipe, "often", "cola", 1).record.unlink()
    names = ("distilled", "often")
    assert comparisons.seeds_by_task(recipe, names, tasks) == {"sentiment": [0], "cola": [0]}
    assert comparisons.seeds_by_task(recipe, ("distilled",), tasks)["cola"] == [0, 1]
    experiment.finetune_cell(recipe, "often", "sentiment", 0).record.unlink()
    rows = comparisons.compare(recipe, "often", "distilled")
    assert [(row["task"], row["seeds"]) for row in rows] == [("sentiment", 1), ("cola", 1)]
    assert comparisons.seeds_by_task(recipe, names, tasks) == {}  # no seed that both tasks have


def test_the_curve_is_the_line_through_the_budgets_of_the_students_rate(results, tmp_path):
    """Another learning rate is another curve; what was never distilled has no budget."""
    spec = RECIPE["models"]["distilled"]["distill"]
    longer, faster = {"epochs": 2}, {"epochs": 1, "learning_rate": 0.1}
    models = RECIPE["models"] | {
        name: {"label": name, "distill": spec | {"training": training}}
        for name, training in {"long": longer, "short": {"epochs": 0.25}, "fast": faster}.items()
    }
    recipe = make_recipe(tmp_path, models=models)
    write_evidence(recipe)
    found = distillation.token_curve(recipe)
    assert found["models"] == ["short", "distilled", "long"] and found["tasks"] == ["sentiment"]
    assert found["tokens"] == [2250, 4500, 18000]
    means = {
        row["model"]: row["over_seeds"]["mean"]
        for row in scores.score_rows(recipe)
        if row["primary"]
    }
    kept = [means[model] / means["teacher"] for model in found["models"]]
    slope, intercept = np.polyfit(np.log10(found["tokens"]), kept, 1)
    assert found["points"] == pytest.approx(kept)
    assert found["slope"]["estimate"] == pytest.approx(slope)
    assert found["at_budget"]["estimate"] == pytest.approx(
        intercept + slope * np.log10(3 * 3.3e9)  # three epochs of the paper's words
    )
    assert found["target"] == 0.97  # the paper's
    losses = distillation.loss_curves(recipe, distillation.budget_rows(recipe))
    assert set(losses) == {"teacher", "distilled", "long", "short", "fast"}  # no ablation
    undistilled = make_recipe(tmp_path, models=models, student="undistilled")
    assert distillation.token_curve(undistilled) is None


def test_missing_records_are_no_evidence(results, tmp_path):
    recipe = make_recipe(tmp_path)
    found = claims.judge_all(recipe, load_ledger())
    assert {row["verdict"] for row in found} == {"not tested"}
    assert history.provenance(recipe)["missing"]
    assert scores.score_rows(recipe) == []


def test_a_record_without_git_says_that_changes_are_unknown(tiny):
    for path in tiny.folder.glob("finetune/*.json"):
        record = read_record(path)
        measured = record.measured.model_copy(update={"git_commit": None, "git_dirty": None})
        write_record(path, record.model_copy(update={"measured": measured}))
    rows = {row["name"]: row for row in history.provenance(tiny)["records"]}
    changed = [row for name, row in rows.items() if name.startswith("finetune/")]
    assert changed and {(row["commit"], row["dirty"]) for row in changed} == {("unknown", None)}


def test_scores_agree_with_the_records(tiny):
    rows = scores.score_rows(tiny)
    assert {(row["model"], row["metric"]) for row in rows} == {
        (model, metric)
        for model in tiny.models_of("sentiment")
        for metric in ("accuracy", "precision", "recall", "f1")
    }
    for row in rows:
        if row["metric"] in ("precision", "recall"):
            continue
        assert row["interval"]["estimate"] == pytest.approx(row["over_seeds"]["mean"])
        assert row["interval"]["low"] <= row["interval"]["estimate"]
    (pair,) = comparisons.compare(tiny, "undistilled", "teacher")
    mean = {row["model"]: row["over_seeds"]["mean"] for row in rows if row["primary"]}
    assert pair["gap"]["estimate"] == pytest.approx(mean["undistilled"] - mean["teacher"])
    assert pair["seeds"] == 2 and pair["p_holm"] == pair["gap"]["p"]  # one test, of one task


@pytest.mark.parametrize("model, seed", [("teacher", 1), ("undistilled", 0)])
def test_predictions_in_another_order_are_not_compared(tiny, monkeypatch, model, seed):
    read = scores.read_predictions

    def reversed_once(recipe, *names):
        frame = read(recipe, *names)
        return frame[::-1].reset_index(drop=True) if names[::3] == (model, seed) else frame

    monkeypatch.setattr(scores, "read_predictions", reversed_once)
    with pytest.raises(UserError, match="in another order"):
        comparisons.compare(tiny, "undistilled", "teacher")


@pytest.mark.parametrize("part", ["metrics", "settings"])
def test_seeds_of_two_learning_rates_have_no_mean_and_no_verdict(tiny, part):
    """Tuned anew in between, or the recipe edited."""
    assert len(scores.seed_records(tiny, "teacher", "sentiment", [0, 1])) == 2
    cell = experiment.finetune_cell(tiny, "teacher", "sentiment", 1)
    record = cell.read_record()
    changed = getattr(record, part) | {"learning_rate": 0.123}
    write_record(cell.record, record.model_copy(update={part: changed}))
    refused = r"^teacher on sentiment: seeds 0 and 1 were fine-tuned with different settings"
    for read in (
        lambda: scores.score_rows(tiny),
        lambda: comparisons.crossed_scores(tiny, ("teacher", "undistilled"), ["sentiment"]),
        lambda: claims.judge_all(tiny, load_ledger()),
    ):
        with pytest.raises(UserError, match=refused):
            read()
    for seed in (0, 1):
        scores.seed_predictions(tiny, "teacher", "sentiment", "validation", [seed])


def test_one_seed_is_not_tested(tiny):
    (pair,) = comparisons.compare(tiny, "undistilled", "teacher")
    assert pair["effect"] in ("rise", "fall", "none")
    tiny.seeds[:] = tiny.seeds[:1]
    (pair,) = comparisons.compare(tiny, "undistilled", "teacher")
    assert (pair["effect"], pair["p_holm"]) == ("untested", None)
    assert all(row["effect"] == "untested" for row in comparisons.ablation_rows(tiny))


def test_an_effect_is_what_is_left_after_holm():
    """Over the three that are tested: 0.01 x 3, 0.025 x 2 (no longer below 0.05), 0.5 x 1."""
    gaps = [
        {"p": p, "estimate": estimate}
        for p, estimate in ((0.01, -0.2), (None, 0.9), (0.5, 0.1), (0.025, 0.3))
    ]
    rows = [{} for _ in gaps]
    comparisons._add_effects(rows, gaps)
    assert [row["p_holm"] for row in rows] == [pytest.approx(0.03), None, 0.5, 0.05]
    assert [row["effect"] for row in rows] == ["fall", "untested", "none", "none"]
    comparisons._add_effects(rows[3:], gaps[3:])  # alone it is one
    assert rows[3]["effect"] == "rise"


def test_errors_by_phenomenon_add_up(tiny):
    rows = [row for row in lost.error_rows(tiny) if row["model"] == "teacher"]
    assert sum(row["examples"] for row in rows) == 120
    wrong = sum(row["error"] * row["examples"] for row in rows)
    (accuracy,) = [
        row["over_seeds"]["mean"]
        for row in scores.score_rows(tiny)
        if row["model"] == "teacher" and row["primary"]
    ]
    assert wrong / 120 == pytest.approx(1 - accuracy)
    (matrix,) = [r["counts"] for r in scores.confusion_rows(tiny) if r["model"] == "teacher"]
    assert np.trace(matrix) / np.sum(matrix) == pytest.approx(accuracy)


def test_errors_by_length_add_up(tiny):
    rows = [row for row in lost.error_rows(tiny, "tokens") if row["model"] == "teacher"]
    bounds = [int(end) for row in rows for end in row["tokens"].split("–")]
    assert len(rows) == 4 and bounds == sorted(bounds) and len(set(bounds)) == 8
    assert sum(row["examples"] for row in rows) == 120
    wrong = sum(row["error"] * row["examples"] for row in rows)
    whole = [row for row in lost.error_rows(tiny) if row["model"] == "teacher"]
    assert wrong == pytest.approx(sum(row["error"] * row["examples"] for row in whole))


def test_what_is_lost_agrees_with_the_predictions(tiny):
    (row,) = lost.lost_rows(tiny, "undistilled", "teacher")
    paths = {
        name: [
            experiment.finetune_cell(tiny, name, "sentiment", seed).outputs[0]
            for seed in tiny.seeds
        ]
        for name in ("teacher", "undistilled")
    }
    frames = {name: [pd.read_parquet(path) for path in found] for name, found in paths.items()}
    equal = [
        (a["prediction"] == b["prediction"]).mean()
        for a, b in zip(frames["teacher"], frames["undistilled"])
    ]
    assert row["agreement"] == pytest.approx(np.mean(equal)) and row["seeds"] == [0, 1]
    first, second = (frame["prediction"] for frame in frames["teacher"])
    assert row["teacher_agreement"] == pytest.approx((first == second).mean())
    # With logits 0 and 1 a differing example costs (p - q) * (1 - 0), p = e / (1 + e) = 1 - q.
    assert row["kl"] == pytest.approx((1 - np.mean(equal)) * (np.e - 1) / (np.e + 1))
    shares, right = row["shares"], {}
    for name, found in frames.items():
        right[name] = np.mean([(f["prediction"] == f["reference"]).mean() for f in found])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["both"] + shares["only_teacher"] == pytest.approx(right["teacher"])
    assert shares["both"] + shares["only_student"] == pytest.approx(right["undistilled"])
    sure = np.e / (1 + np.e)  # all predictions, so the one bin's gap is the error
    for side, name in (("teacher", "teacher"), ("model", "undistilled")):
        found = row["calibration"][side]
        (only,) = found["bins"]
        assert only["count"] == 240 and only["accuracy"] == pytest.approx(right[name])
        gaps = [abs((f["prediction"] == f["reference"]).mean() - sure) for f in frames[name]]
        assert found["expected_calibration_error"] == pytest.approx(np.mean(gaps))
    (same,) = lost.lost_rows(tiny, "teacher", "teacher")
    assert (same["agreement"], same["kl"]) == (1, 0) and same["shares"]["only_teacher"] == 0


def test_what_is_lost_of_answers_and_scores(results, tmp_path):
    windows = {"squad": {"max_length": 384}}
    recipe = make_recipe(tmp_path, tasks=["squad", "stsb"], finetune_tasks=windows, seeds=[0])
    matches = {"teacher": [1.0, 1.0, 1.0, 0.0, 0.0], "undistilled": [1.0, 1.0, 0.0, 1.0, 0.0]}
    for name, exact in matches.items():
        for task in recipe.tasks:
            cell = experiment.finetune_cell(recipe, name, task, 0)
            columns = {"exact_match": exact, "prediction": exact, "reference": exact}
            columns |= {"logit_0": exact, "tokens": range(5)}
            columns |= {"id": list("abcde")} if task == "squad" else {}
            cell.outputs[0].parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(columns).to_parquet(cell.outputs[0])
            with recording(cell.record, **cell.provenance):
                pass
    cell = experiment.finetune_cell(recipe, "undistilled", "squad", 0)
    frame = pd.read_parquet(cell.outputs[0])
    frame.assign(id=frame["id"][::-1].to_numpy()).to_parquet(cell.outputs[0])
    with pytest.raises(UserError, match="squad, validation: predictions of other rows"):
        comparisons.compare(recipe, "undistilled", "teacher")
    with pytest.raises(UserError, match="squad, validation: predictions of other rows"):
        lost.lost_rows(recipe, "undistilled", "teacher")
    frame.to_parquet(cell.outputs[0])
    (row,) = lost.lost_rows(recipe, "undistilled", "teacher")
    assert (row["task"], row["agreement"], row["kl"]) == ("squad", pytest.approx(0.6), None)
    assert row["shares"] == pytest.approx(
        {"both": 0.4, "only_teacher": 0.2, "only_student": 0.2, "neither": 0.2}
    )
    assert row["calibration"] is None and row["teacher_agreement"] is None
    assert comparisons.guessing_scores(recipe) == {"squad": 0, "stsb": 0}
    assert {found["task"] for found in lost.error_rows(recipe, "tokens")} == {"squad"}


def test_leaving_out_a_task_leaves_the_ratio_of_the_other_means(results, tmp_path):
    recipe = make_recipe(tmp_path, tasks=["cola", "mrpc", "rte"])
    write_evidence(recipe)
    mean = {
        (row["model"], row["task"]): row["over_seeds"]["mean"]
        for row in scores.score_rows(recipe)
        if row["primary"]
    }
    planned, metrics, *others = sensitivity.sensitivity(recipe, first=2)["rows"]
    assert [row["variant"] for row in others] == ["without_task"] * len(planned["tasks"])
    assert [row["tasks"] for row in others] == [
        [task for task in planned["tasks"] if task != left_out] for left_out in planned["tasks"]
    ]
    for row in others:
        own, teacher = (
            sum(mean[model, task] for task in row["tasks"]) for model in ("distilled", "teacher")
        )
        assert row["kept"]["estimate"] == pytest.approx(own / teacher)
    assert (metrics["variant"], metrics["metrics"]) == ("other_metrics", {"mrpc": "accuracy"})
    for row in scores.score_rows(recipe):
        if (row["task"], row["metric"]) == ("mrpc", "accuracy"):
            mean[row["model"], "mrpc"] = row["over_seeds"]["mean"]
    own, teacher = (
        sum(mean[model, task] for task in planned["tasks"]) for model in ("distilled", "teacher")
    )
    assert metrics["kept"]["estimate"] == pytest.approx(own / teacher)
    assert metrics["kept"]["estimate"] != pytest.approx(planned["kept"]["estimate"])
