"""Tables and answers of notebooks from small records whose rows are worked out by hand."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
from invented import RECIPE, make_recipe

from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.study import answers, cells, claims, figures, tables
from distilbert_kit.study.evidence import comparisons, distillation, scores, sensitivity, speed
from distilbert_kit.study.ledger import load_ledger
from distilbert_kit.study.records import recording
from distilbert_kit.training.classification import score


def record(cell, metrics, **extra):
    """Write the record of a cell."""
    cell.record.unlink(missing_ok=True)
    with recording(cell.record, **cell.provenance) as draft:
        draft.metrics, draft.extra = metrics, extra


def answered(recipe, model, right, seed=0, task="sentiment"):
    """A fine-tuning on a task of two classes whose predictions are right where `right` has a 1."""
    cell = cells.finetune_cell(recipe, model, task, seed)
    references = np.arange(len(right)) % 2
    predictions = np.where(np.array(right), references, 1 - references)
    logits = np.eye(2)[predictions]
    columns = {"reference": references, "prediction": predictions, "tokens": range(len(right))}
    columns |= {"logit_0": logits[:, 0], "logit_1": logits[:, 1]}
    cell.outputs[0].parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(cell.outputs[0])
    metrics = {"validation": score(logits, references, get_task(task))}
    metrics |= {"train_examples": 4, "updates": 2, "history": [{"update": 2, "loss": 0.5}]}
    record(cell, metrics, train_seconds=2.0, train_examples_per_second=2.0)


TEACHER = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]  # 8 of 10
STUDENT = [1, 1, 1, 1, 1, 1, 0, 0, 1, 0]  # 7: loses two of the teacher's, wins one
CONTROL = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]  # 5


@pytest.fixture
def one_seed(results, tmp_path):
    """Teacher, student and control on one task with one seed; the other models are missing."""
    recipe = make_recipe(tmp_path, seeds=[0])
    answered(recipe, "teacher", TEACHER)
    answered(recipe, "distilled", STUDENT)
    answered(recipe, "undistilled", CONTROL)
    return recipe


def by_model(rows):
    return {row["model"]: row for row in rows}


def test_scores_have_the_sign_and_the_interval_of_the_gap(one_seed):
    found = tables.scores(one_seed)
    json.dumps(found, allow_nan=False)
    rows = [row for row in found["rows"] if row["primary"]]
    assert {row["model"]: row["values"] for row in rows} == {
        "teacher": [0.8],
        "undistilled": [0.5],
        "distilled": [0.7],
    }  # a missing model has no row
    assert all(row["over_seeds"]["sd"] is None for row in rows)  # nor has one seed a spread
    assert all(row["interval"]["low"] < row["values"][0] < row["interval"]["high"] for row in rows)
    gaps = by_model(found["comparisons"])
    assert gaps["distilled"]["gap"]["estimate"] == pytest.approx(-0.1)  # below zero: behind
    assert gaps["undistilled"]["gap"]["estimate"] == pytest.approx(-0.3)
    assert gaps["distilled"]["gap"]["low"] < -0.1 < gaps["distilled"]["gap"]["high"]
    assert found["mean_over_control"].keys() == {"retention"}  # WNLI is no task of this recipe
    assert found["mean_over_control"]["retention"]["estimate"] == pytest.approx(0.7 / 0.5)
    [control] = found["over_control"]
    assert (control["model"], control["reference"]) == ("distilled", "undistilled")
    assert control["gap"]["estimate"] == pytest.approx(0.2)
    macro = by_model(found["macro"])
    assert macro["distilled"]["retention"]["estimate"] == pytest.approx(0.7 / 0.8)
    # Guessing gets half: (0.7 - 0.5) / (0.8 - 0.5) is kept above it.
    assert found["guessing"] == {"sentiment": 0.5}
    assert macro["distilled"]["above_guessing"]["estimate"] == pytest.approx(2 / 3)
    assert "retention" not in macro["teacher"]
    [matrix] = [row["counts"] for row in found["confusion"] if row["model"] == "distilled"]
    assert np.trace(matrix) == 7 and np.sum(matrix) == 10
    assert set(found["records"]) == {f"finetune/{n}-sentiment-0" for n in [*gaps, "teacher"]}
    assert found["errors"] == [] and not found["errors_figure"]  # the predictions name no phenomena


def test_a_recipe_that_times_nothing_says_which_key_is_missing(results, tmp_path):
    recipe = make_recipe(tmp_path, speed=None)
    with pytest.raises(UserError, match="has no speed: add that key"):
        tables.size_speed(recipe)


def test_distillation_is_told_without_wnli_too(results, tmp_path):
    """WNLI turns it round: with it the student is behind its control, without it ahead."""
    both = ["sentiment", "wnli"]
    recipe = make_recipe(tmp_path, seeds=[0], tasks=both, macro=both)
    for task, student, control in (
        ("sentiment", STUDENT, CONTROL),
        ("wnli", [0] * 9 + [1], TEACHER),
    ):
        answered(recipe, "teacher", TEACHER, task=task)
        answered(recipe, "distilled", student, task=task)
        answered(recipe, "undistilled", control, task=task)
    found = tables.scores(recipe)
    assert {row["task"]: row["gap"]["estimate"] for row in found["over_control"]} == pytest.approx(
        {"sentiment": 0.2, "wnli": -0.7}
    )
    ratio = found["mean_over_control"]["without_wnli"]
    assert found["mean_over_control"]["retention"]["estimate"] < 1
    assert ratio["estimate"] == pytest.approx(0.7 / 0.5) and ratio["low"] < 1.4 < ratio["high"]
    compared = comparisons.crossed_scores(recipe, ("undistilled", "distilled"), both)
    for alone in both:  # nothing is left without it, or nothing is left out
        assert set(comparisons._mean_ratios({alone: compared[alone]})) == {"retention"}
    others = dict.fromkeys(("sst2", "rte"), compared["sentiment"])
    assert set(comparisons._mean_ratios(others)) == {"retention"}
    gap = comparisons.mean_gap(recipe, "distilled", "undistilled", ["sentiment"])
    assert (gap["tasks"], gap["gap"]["estimate"]) == (["sentiment"], pytest.approx(0.2))
    cells.finetune_cell(recipe, "undistilled", "wnli", 0).record.unlink()
    assert comparisons.mean_over_control(recipe) is None  # a mean over fewer is another number


def test_scores_are_answered_in_a_sentence(one_seed):
    said = answers.scores(tables.scores(one_seed), "distilled", "teacher")
    assert "keeps 87.5 % [" in said and "over 1 task at embedded scale (70.0 against 80.0)" in said
    assert "one seed cannot tell whether it is worse on any" in said
    for model, wrong in {"teacher": 0, "distilled": 50, "undistilled": 60}.items():
        answered(one_seed, model, [1] * (200 - wrong) + [0] * wrong)
    found = tables.scores(one_seed)
    for row in found["comparisons"]:
        row["effect"] = "fall"  # as with more seeds
    said = answers.scores(found, "distilled", "teacher")
    assert "keeps 75.0 % [" in said and "significantly worse on 1 of the 1 task " in said


def test_what_is_lost_is_counted_example_by_example(one_seed):
    found = tables.lost(one_seed)
    rows = by_model(found["rows"])
    assert list(rows) == ["distilled", "undistilled"]  # the student and its start
    expected = {"both": 0.6, "only_teacher": 0.2, "only_student": 0.1, "neither": 0.1}
    assert rows["distilled"]["shares"] == pytest.approx(expected)
    assert rows["distilled"]["agreement"] == pytest.approx(0.7)  # two classes: alike if both wrong
    assert rows["undistilled"]["agreement"] == pytest.approx(0.7)
    assert rows["distilled"]["teacher_agreement"] is None  # one seed
    assert found["records"] == [
        f"finetune/{name}-sentiment-0" for name in ("distilled", "teacher", "undistilled")
    ]
    assert {row["model"] for row in found["lengths"]} == {"teacher", "distilled", "undistilled"}
    said = answers.lost(found, "distilled")
    assert "answers as its teacher does on 70.0 % (undistilled: 70.0 %)" in said
    assert "it gets 20.0 % wrong" in said and "and 10.0 % right" in said
    answered(one_seed, "distilled", TEACHER)
    said = answers.lost(tables.lost(one_seed), "distilled")
    assert "on 100.0 % (undistilled: 70.0 %)" in said and "it gets 0.0 % wrong" in said


def test_means_of_what_is_lost_are_over_the_tasks_that_both_students_have():
    def row(model, task, agreement):
        shares = {"only_teacher": 1 - agreement, "only_student": 0.0}
        where = {"model": model, "task": task, "split": get_task(task).eval_splits[0]}
        return where | {"agreement": agreement, "shares": shares}

    rows = [row("s", "sst2", 0.9), row("s", "mnli", 0.7), row("c", "sst2", 0.6)]
    second = row("s", "sst2", 0.1) | {"split": "another split"}
    said = answers.lost({"rows": [*rows, second], "scale": "paper scale"}, "s")
    assert said.startswith("Over SST-2 ") and "90.0 % (c: 60.0 %)" in said
    assert "no answer" in answers.lost({"rows": [rows[1], rows[2]], "scale": ""}, "s")


def test_without_records_tables_are_empty_and_say_so(results, tmp_path):
    recipe = make_recipe(tmp_path)
    assert tables.scores(recipe)["rows"] == tables.ablation(recipe)["rows"] == []
    assert "no answer" in answers.scores(tables.scores(recipe), "distilled", "teacher")
    assert "no answer" in answers.lost(tables.lost(recipe), "distilled")
    assert "takes no part" in answers.ablation(tables.ablation(recipe))
    assert tables.training(recipe)["runs"] == tables.deployment(recipe)["int8"] == []
    found = tables.training_speed(recipe)
    assert found["rows"] == found["records"] == [] and found["examples"] is None
    described = tables.study(recipe)
    assert described["main"] == [] and described["evidence"]["records"] == []
    assert {row["parameters"] for row in described["models"]} == {None}
    found = tables.distillation(recipe)
    assert found["corpus"] == {} and found["runs"] == [] and found["step"] is None
    assert "does not distill" in answers.distillation(found, "distilled", None)


def test_training_runs_and_models_are_listed(one_seed):
    found = tables.training(one_seed)
    assert [run["name"] for run in found["runs"]] == found["records"]
    assert {run["last_loss"] for run in found["runs"]} == {0.5}
    assert found["settings"]["sentiment"] == one_seed.finetune_for("sentiment").model_dump(
        mode="json"
    )
    record(cells.model_cell(one_seed, "undistilled"), {"parameters": 17})
    described = tables.study(one_seed)
    assert set(described["main"]) == {"teacher", "undistilled", "distilled"}
    count = {row["name"]: row["parameters"] for row in described["models"]}
    assert count["undistilled"] == 17 and count["distilled"] is None
    assert "extract/undistilled" not in described["evidence"]["missing"]
    assert [task for task, _, _ in scores.histories(one_seed)] == 3 * ["sentiment"]


def fill_speed(recipe, passes=((20.0, 10.0), (30.0, 20.0)), parameters=60):
    """Table 3 with a pass total of 20 s against 10 s and 30 s against 20 s, two passes each."""
    part = {"parameters_embeddings": 10, "parameters_pooler": 0, "parameters_per_layer": 5}
    part |= {"bytes_fp32": 4, "bytes_fp16": 2}
    size = {
        "bert/ours": part | {"parameters": 100, "layers": 12},
        "distilbert/ours": part | {"parameters": parameters, "layers": 6},
    }
    metrics = dict.fromkeys(("weights", "head", "text", "passes", "share_of_pairs", "pairs"), 1)
    metrics |= {"mean_tokens": 20.0, "longest": 60, "size": size, "flops_ratio": {"ours": 2.0}}
    metrics |= {"text": "STS-B dev", "flops": {"bert/ours": 2e12, "distilbert/ours": 1e12}}
    settings = {
        f"threads_{number}": {
            "pass_seconds": {"bert/ours": [bert - 2, bert + 2], "distilbert/ours": 2 * [distil]},
            "transformers_milliseconds": {"layers": 1.0},
            "fp32_gflops": 500.0,
        }
        for number, (bert, distil) in enumerate(passes, 1)
    }
    record(cells.benchmark_cell(recipe, "size_speed"), metrics, **settings)


def test_size_and_speed_by_hand(results, tmp_path):
    recipe = make_recipe(tmp_path)
    fill_speed(recipe)
    found = tables.size_speed(recipe)
    assert [row["layers"] for row in found["size"]] == [60, 30]
    first, second = found["rows"]
    assert (first["ratio"], first["low"], first["high"]) == (2.0, 1.8, 2.2)
    assert (second["ratio"], second["low"], second["high"]) == (1.5, 1.4, 1.6)
    assert first["less_time"] == 0.5 and second["outside_layers"] == 0.5
    assert [row["share"] for row in speed.rate_rows([first])] == [0.2, 0.2]  # 100 of 500 GFLOP/s
    assert found["least_favourable"] == second | {"bounds": [1.4, 1.6]}
    [claim] = [c for c in load_ledger().claims if c.kind == "speed"]
    judged = claims.find(claim, recipe)
    assert (judged.value, judged.low, judged.high) == (1.5, 1.4, 1.6)
    assert judged.detail == "our implementation with 2 threads; all: 2.00, 1.50"
    assert judged.interval == "range of 2 passes"  # a record without the interval over pairs
    first["over_pairs"] = {"low": 1.3, "high": 1.9}  # the wider bounds count
    assert speed.least_favourable(found["rows"])["bounds"] == [1.3, 2.2]
    said = answers.size_speed(tables.size_speed(recipe), tables.paper())
    assert "40.0 % fewer" in said and "1.50 times as long (1.40 to 1.60) in" in said
    assert "least favourable of 2 settings" in said and "39.4 % and 1.63 times" in said
    fill_speed(recipe, ((20.0, 10.0), (30.0, 10.0)), parameters=75)
    said = answers.size_speed(tables.size_speed(recipe), tables.paper())
    assert "25.0 % fewer" in said and "2.00 times as long (1.80 to 2.20) in" in said


def test_runs_of_one_answer_count_and_are_named(results, tmp_path):
    recipe = make_recipe(tmp_path, seeds=[0, 1])
    constant = [1, 0] * 5  # the references are 0, 1, 0, 1 …
    for seed, student in enumerate((STUDENT, constant)):
        answered(recipe, "teacher", TEACHER, seed)
        answered(recipe, "distilled", student, seed)
        answered(recipe, "undistilled", CONTROL, seed)
    found = sensitivity.sensitivity(recipe, first=1)
    assert found["one_answer"] == [{"model": "distilled", "task": "sentiment", "seed": 1}]
    assert found["curve"] is None  # of one budget
    kept = {row["variant"]: row["kept"]["estimate"] for row in found["rows"]}
    assert kept == pytest.approx(
        {"planned": 0.6 / 0.8, "first_seeds": 0.7 / 0.8, "without_one_answer": 0.7 / 0.8}
    )
    planned, _, without = found["rows"]
    assert planned["over_control"]["estimate"] == pytest.approx(0.6 / 0.5)
    assert without["over_control"]["estimate"] == pytest.approx(0.7 / 0.5)
    assert without["control_kept"]["estimate"] == pytest.approx(0.5 / 0.8)
    answered(recipe, "distilled", constant, 0)
    *_, without = sensitivity.sensitivity(recipe, first=2)["rows"]
    assert without["variant"] == "without_one_answer" and without["kept"] is None  # no seed is left
    answered(recipe, "distilled", STUDENT, 0)
    answered(recipe, "distilled", STUDENT, 1)
    found = sensitivity.sensitivity(recipe, first=2)
    assert not found["one_answer"] and [row["variant"] for row in found["rows"]] == ["planned"]


def test_distillation_by_hand(one_seed):
    def distilled(name, tokens, after):
        metrics = {"train_tokens": tokens, "updates": 2, "history": [{"update": 2, "ce": after}]}
        metrics["validation"] = {"before": {"ce": 5.0}, "after": {"ce": after}}
        cell = cells.model_cell(one_seed, name)
        record(cell, metrics, train_seconds=3.0, train_tokens_per_second=tokens / 3)

    distilled("distilled", 3_000_000, 2.0)
    distilled("random_initialisation", 3_000_000, 4.0)
    found = tables.distillation(one_seed)
    assert found["records"] == ["distill/distilled", "distill/random_initialisation"]
    assert [row["after"]["ce"] for row in found["runs"]] == [2.0, 4.0]
    budgets = [(row["model"], row["tokens"]) for row in found["budgets"]]
    assert budgets == [("undistilled", 0), ("distilled", 3_000_000)]  # the ablation is no budget
    assert found["budgets"][1]["scores"]["sentiment"]["mean"] == pytest.approx(0.7)
    assert found["curve"] is None and found["budget_tasks"] == []  # two points make no curve
    curves = distillation.loss_curves(one_seed, found["budgets"])
    assert curves == {"distilled": ([{"update": 2, "ce": 2.0}], 1_500_000)}
    gain = comparisons.mean_gap(one_seed, "distilled", "undistilled")
    said = answers.distillation(found, "distilled", gain)
    assert "on 3,000,000 tokens" in said and "from 5.000 to 2.000" in said
    assert "over 1 task by +20.0 points [" in said and "at embedded scale" in said
    distilled("distilled", 3_000_000, 1.0)
    said = answers.distillation(tables.distillation(one_seed), "distilled", None)
    assert "from 5.000 to 1.000; no task" in said
    assert comparisons.mean_gap(one_seed, "distilled", "random_initialisation") is None


def test_ablation_by_hand(one_seed, tmp_path):
    answered(one_seed, "random_initialisation", CONTROL)
    found = tables.ablation(one_seed)
    [row] = found["rows"]
    assert (row["model"], row["reference"]) == ("random_initialisation", "distilled")
    assert row["change"] == pytest.approx(-0.2) and row["paper"] == -3.69
    assert found["undistilled"]["by_task"] == {"sentiment": pytest.approx(-0.2)}  # 5 against 7
    assert found["records"] == [
        f"finetune/{name}-sentiment-0"
        for name in ("distilled", "random_initialisation", "undistilled")
    ]
    said = answers.ablation(found)
    assert "Of 1 change, none is tested, with one seed, at" in said
    assert "with −20.0 points [" in said
    shown = copy.deepcopy(found)
    shown["rows"][0] |= {"low": -0.3, "high": -0.1, "effect": "fall"}
    shown["order"] = [{"gap": {"low": 0.1}}, {"gap": {"low": -0.1}}]
    said = answers.ablation(shown)
    assert "Of 1 change, 1 significantly lower the mean score (“from random weights”)" in said
    assert "order shows in 1 of 2 steps" in said
    shown["rows"][0] |= {"change": 0.2, "low": 0.1, "high": 0.3, "effect": "rise"}
    assert "1 significantly raise it" in answers.ablation(shown)
    shown["rows"][0] |= {"effect": "none"}  # the interval is not adjusted
    assert "none significantly changes" in answers.ablation(shown)
    answered(one_seed, "random_initialisation", [1] * 10)
    assert tables.ablation(one_seed)["rows"][0]["change"] == pytest.approx(0.3)


def test_parts_of_a_change_are_on_the_seeds_that_both_models_have(results, tmp_path):
    recipe = make_recipe(tmp_path, seeds=[0, 1])
    answered(recipe, "distilled", STUDENT, seed=0)
    answered(recipe, "distilled", [1] * 10, seed=1)  # its mean over both seeds is 0.85
    answered(recipe, "random_initialisation", CONTROL, seed=0)
    [row] = tables.ablation(recipe)["rows"]
    assert row["change"] == row["by_task"]["sentiment"] == pytest.approx(-0.2)
    assert row["by_seed"] == [{"seed": 0, "gap": pytest.approx(-0.2)}]
    answered(recipe, "random_initialisation", TEACHER, seed=1)
    [row] = tables.ablation(recipe)["rows"]
    assert [part["gap"] for part in row["by_seed"]] == [pytest.approx(-0.2)] * 2


def test_order_names_its_models_from_what_costs_most(results, tmp_path):
    spec = RECIPE["models"]["distilled"]["distill"]
    models = RECIPE["models"] | {
        "without_ce": {"label": "no ce", "distill": spec | {"loss": {"ce": 0}}}
    }
    recipe = make_recipe(tmp_path, models=models, seeds=[0])
    answered(recipe, "distilled", TEACHER)
    answered(recipe, "random_initialisation", CONTROL)
    answered(recipe, "without_ce", STUDENT)
    [step] = tables.ablation(recipe)["order"]
    assert (step["lower"], step["upper"]) == ("random_initialisation", "without_ce")
    assert step["labels"][1] == "no ce" and step["gap"]["estimate"] == pytest.approx(0.2)


def test_printed_gaps_are_the_papers():
    gaps = comparisons.printed_gaps(tables.paper())
    assert gaps["sst2"] == pytest.approx(-1.4) and gaps["wnli"] == pytest.approx(2.8)
    assert gaps["imdb"] == pytest.approx(-0.64) and gaps["squad"] == pytest.approx(-3.5)
    assert len(gaps) == 11 and "score" not in gaps


def test_frame_shows_what_is_there():
    rows = [{"task": "a", "gap": {"low": 0.12345}, "p": None}, {"task": "b", "gap": {"low": 1}}]
    found = tables.frame(rows, ["task", "gap.low", "p", "unknown"])
    assert list(found.columns) == ["gap.low"] and found.loc["a", "gap.low"] == 0.123
    empty = tables.frame([], ["task"])
    assert len(empty) == 1 and "no records" in empty.iloc[0, 0]


def test_table_refuses_nan(one_seed):
    with pytest.raises(ValueError, match="JSON"):
        figures.save_table(one_seed, "bad", {"score": float("nan")})


def test_a_table_is_as_it_was_written(one_seed):
    figures.save_table(one_seed, "study", {"rows": [{"value": 0.25}]})
    figures.check_tables(one_seed)
    path = one_seed.folder / "tables" / "study.json"
    written = json.loads(path.read_text())
    unstamped = {name: value for name, value in written.items() if name != "sha256"}
    for damaged in (written | {"rows": []}, unstamped, unstamped | {"sha257": "0"}, [written]):
        path.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"study\.json: damaged"):
            figures.check_tables(one_seed)
