"""From hand-made records to claims, notebooks, report and poster."""

import json
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from distilbert_kit.data.listed import DataUsed
from distilbert_kit.data.tasks import get_task
from distilbert_kit.paths import CODE, NOTEBOOKS, RECIPES
from distilbert_kit.study import cells as experiment
from distilbert_kit.study import claims, figures, publication, recipes
from distilbert_kit.study.evidence import comparisons, distillation, lost, scores
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import recording
from distilbert_kit.training import classification as evaluation

sys.path.insert(0, str(CODE))
import build_report
from benchmarks import distillation_speed, shared, size_speed, training_speed

RECIPE = yaml.safe_load((RECIPES / "quick.yaml").read_text()) | {
    "name": "tiny",
    "seeds": [0, 1],
}
SIZES = {  # config.json of bert-base-uncased and distilbert-base-uncased, counted by hand
    "bert": {"parameters_embeddings": 23_837_184, "parameters_pooler": 590_592, "layers": 12},
    "distilbert": {"parameters_embeddings": 23_835_648, "parameters_pooler": 0, "layers": 6},
}
ENCODERS = {"bert": 109_482_240, "distilbert": 66_362_880}  # the two checkpoints of the hub
SKILL = {"teacher": 0.9, "random_initialisation": 0.6}  # the others: 0.8
RATES = {"fp32_gflops": 100.0, "bf16_gflops": 200.0}


def fill_extract(draft, cell, rng):
    draft.metrics = {"parameters": 17_000_000, "layers": [0, 2, 4], "copied": "all"}


def fill_corpus(draft, cell, rng):
    split = {"documents": 9, "sequences": 90, "tokens": 9000, "shards": []}
    draft.metrics = {
        "splits": {"train": split, "validation": split},
        "dropped": {"short": 1, "unknown": 0, "duplicate": 2},
        "settings": {"max_length": 512},
    }


def fill_masked_lm(draft, cell, rng):
    terms = ("ce", "mlm", "cos") if cell.stage == "distill" else ("mlm",)
    draft.metrics = {
        "parameters": 17_000_000,
        "train_tokens": round(9000 * cell.settings["training"]["epochs"]),
        "updates": 3,
        "history": [
            {"update": u, "learning_rate": 1e-4} | dict.fromkeys(terms, 5.0 / u) for u in (1, 2, 3)
        ],
        "validation": {"before": dict.fromkeys(terms, 5.0), "after": dict.fromkeys(terms, 2.0)},
    }
    draft.extra = {"train_seconds": 9.0, "train_tokens_per_second": 1000.0}


def fill_finetune(draft, cell, rng):
    """Predictions of which a model gets about its share of `SKILL` right."""
    task, count = get_task(cell.identity["task"]), 120
    draft.metrics["train_examples"] = 64
    draft.metrics["history"] = [
        {"update": u, "loss": 0.7 / u, "learning_rate": 1e-4} for u in (1, 2, 3)
    ]
    draft.extra = {"train_seconds": 1.0, "train_examples_per_second": 64.0}
    references = np.arange(count) % task.num_labels
    skill = SKILL.get(cell.identity["model"], 0.8)
    draft.data.append(DataUsed(name=f"{task.dataset}/train", rows=64, sha256="0" * 64))
    for split, path in zip(task.eval_splits, cell.outputs, strict=True):
        wrong = rng.random(count) > skill
        logits = np.eye(task.num_labels)[(references + wrong) % task.num_labels]
        draft.metrics[split] = evaluation.score(logits, references, task) | {"truncated": 0}
        columns = {"row": np.arange(count), "reference": references}
        columns |= {"prediction": logits.argmax(1)}
        columns |= {f"logit_{i}": logits[:, i] for i in range(task.num_labels)}
        columns["tokens"] = 8 + 7 * np.arange(count) % 52
        if task.dataset.startswith("embedded/"):
            columns["phenomenon"] = np.where(np.arange(count) % 3, "negation", "plain")
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(path, index=False)


def fill_benchmark(draft, cell, rng):
    {
        "size_speed": fill_size_speed,
        "inference_speed": fill_inference,
        "training_speed": fill_training,
        "distillation_speed": fill_distillation,
        "corpus_speed": fill_corpus_speed,
        "question_answering_speed": fill_answering,
    }[cell.name](draft, cell, rng)


def fill_size_speed(draft, cell, rng):
    lengths = np.sort(rng.integers(8, 80, 60))
    size = {}
    taken = {}
    for model, counts in SIZES.items():
        layers = counts["layers"]
        for maker in shared.MAKERS:
            size[f"{model}/{maker}"] = counts | {
                "parameters_per_layer": 7_087_872,
                "parameters": ENCODERS[model],
                "bytes_fp32": 4_000_000 * layers,
                "bytes_fp16": 2_000_000 * layers,
            }
            seconds = 1e-4 * (layers * (2 + lengths / 20) + 1) * (1.1 - 0.1 * (maker == "ours"))
            taken[f"{model}/{maker}"] = seconds * rng.lognormal(0, 0.05, (3, len(lengths)))
    draft.metrics = {
        "weights": "random",
        "head": "none",
        "text": "length profile",
        "pairs": len(lengths),
        "share_of_pairs": len(lengths) / 1500,
        "passes": 3,
        "mean_tokens": float(lengths.mean()),
        "longest": int(lengths.max()),
        "size": size,
    } | size_speed.count_flops(lengths)
    for threads in (1, 2):
        draft.extra[f"threads_{threads}"] = size_speed.summarise_passes(taken, lengths) | RATES


def fill_inference(draft, cell, rng):
    by_length = []
    for length in (16, 32, 64, 128, 256, 512):
        times = {name: rng.lognormal(0, 0.1, 9) * length * 1e-4 for name in "abcd"}
        row = {"length": length}
        for name, values in zip(
            ("ours", "transformers", "ours_encoder", "transformers_encoder"),
            times.values(),
        ):
            row[f"{name}_milliseconds"] = round(1e3 * float(np.median(values)), 3)
        row["classifier"] = shared.median_ratio(times["b"], times["a"])
        row["encoder"] = shared.median_ratio(times["d"], times["c"])
        by_length.append(row)
    draft.metrics = {"text": "length profile", "pairs": 60, "length_repeats": 9}
    draft.metrics["padding"] = {
        "real_tokens": 900,
        "padded_8_tokens": 1300,
        "padded_32_tokens": 1600,
    }
    draft.extra = {f"threads_{n}": {"by_length": by_length} | RATES for n in (1, 2)}
    draft.extra["file_order"] = {
        "ours_seconds": [1.0, 1.1, 1.0],
        "padded_8_seconds": [2.0, 2.1, 2.2],
        "padded_32_seconds": [2.0, 2.1, 2.2],
    }
    draft.extra["largest_logit_difference"] = 1e-6


def measured_precisions():
    return [name for name in ("fp32", "bf16") if RATES[f"{name}_gflops"]]


def fill_training(draft, cell, rng):
    best = measured_precisions()[-1]
    names = ("ours", f"trainer_{best}_grouped", "trainer_fp32")
    draft.metrics = {
        "examples": 64,
        "batch_size": 32,
        "precision": best,
        "dev_accuracy": training_speed.summarise_accuracy(
            {name: [700, 705, 710] for name in names}, 872
        ),
    }
    draft.extra = RATES | {
        "seconds": {name: list(rng.lognormal(1 + (name != "ours"), 0.1, 3)) for name in names}
    }


def fill_distillation(draft, cell, rng):
    names = [f"{maker}_{p}" for maker in ("textbook", "ours") for p in measured_precisions()]
    best = [name for name in names if name.endswith(measured_precisions()[-1])]

    def taken(names):
        parts = dict.fromkeys((*distillation_speed.PARTS, "rest"), 0.5)
        rows = {n: 2 * [parts | {"total": 3.5 + n.startswith("textbook")}] for n in names}
        return distillation_speed.summarise_updates(rows)

    draft.metrics = {
        "batch": {"sequences": 16, "length": 128},
        "flops_an_update": 10**12,
        "corpus": {
            "sequences": 24,
            "updates": 12,
            "real_tokens": 11000,
            "mean_length": 458.3,
            "textbook_order": "grouped by length",
        },
    }
    draft.extra = RATES | taken(names) | {"corpus": taken(best)}
    draft.extra["peak_memory_bytes"] = dict.fromkeys(names, 2 * 10**9)
    draft.extra["loss"] = {
        "head_dtype": {"fp32": "float32", "bf16": "bfloat16"},
        "ours_fp32_relative": 1e-7,
        "ours_bf16_relative": 1e-5,
    }


def fill_corpus_speed(draft, cell, rng):
    draft.metrics = {"tokens": 1000}
    draft.extra = {
        "seconds": {"ours": [1.0, 1.1], "slow": [9.0, 9.9]},
        "peak_memory_bytes": {"1": 10**7, "2": 10**7},
        "peak_memory_growth": 0.0,
    }


def fill_answering(draft, cell, rng):
    draft.metrics = {"questions": 40, "same_answers": 1.0}
    draft.extra = {"seconds": {"ours": [4.0, 5.0], "textbook": [10.0, 11.0]}}


def write_evidence(recipe):
    """A record for every cell of a recipe, with invented but coherent contents."""
    rng = np.random.default_rng(0)
    fill = {
        "corpus": fill_corpus,
        "extract": fill_extract,
        "pretrain": fill_masked_lm,
        "distill": fill_masked_lm,
        "finetune": fill_finetune,
        "benchmark": fill_benchmark,
    }
    for cell in experiment.evidence_cells(recipe):
        with recording(cell.record, **cell.provenance) as draft:
            fill[cell.stage](draft, cell, rng)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results folder, with a space in its name, for this process and its children."""
    folder = tmp_path / "re sults"
    monkeypatch.setattr(recipes, "RESULTS", folder)
    monkeypatch.setenv("RESULTS_DIR", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    return folder


def make_recipe(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return load_recipe(path)


@pytest.fixture
def tiny(results, tmp_path):
    recipe = make_recipe(tmp_path)
    write_evidence(recipe)
    return recipe


def claim(**changes):
    fixed = {"id": "c", "title": "t", "quote": "q", "where": "w", "metric": "m"}
    fixed |= {"kind": "gap", "unit": "points", "expected": 10.0, "tolerance": 1.0}
    return claims.Claim(**fixed | {"direction": "at least"} | changes)


@pytest.mark.parametrize(
    ("direction", "low", "high", "verdict"),
    [
        ("at least", 9.0, 12.0, "supported"),  # the tolerance itself is inside
        ("at least", 9.5, 99.0, "supported"),  # more than claimed is no fault
        ("at least", 8.9, 12.0, "partly"),
        ("at least", 2.0, 8.9, "not supported"),
        ("at most", -5.0, 11.0, "supported"),
        ("at most", 10.5, 11.5, "partly"),
        ("at most", 11.1, 12.0, "not supported"),
        ("about", 9.2, 10.8, "supported"),
        ("about", 9.2, 11.2, "partly"),
        ("about", 8.0, 12.0, "partly"),
        ("about", 11.1, 12.0, "not supported"),
        ("about", 7.0, 8.5, "not supported"),
    ],
)
def test_verdict_follows_the_whole_interval(direction, low, high, verdict):
    finding = claims.Finding(value=(low + high) / 2, low=low, high=high)
    assert claims.judge(claim(direction=direction), finding, 3)[0] == verdict


def test_too_few_seeds_and_untested():
    inside = {"value": 10.0, "low": 9.9, "high": 10.1}
    assert claims.judge(claim(), claims.Finding(**inside, seeds=3), 3)[0] == "supported"
    assert claims.judge(claim(), claims.Finding(**inside, seeds=2), 3)[0] == "partly"
    outside = claims.Finding(value=1.0, low=0.5, high=1.5, seeds=1)
    assert claims.judge(claim(), outside, 3)[0] == "not supported"
    # A value that is only an indication never decides.
    untested = claims.Finding(**inside, seeds=3, untested="reduced scale")
    assert claims.judge(claim(), untested, 3) == ("not tested", "reduced scale")
    assert claims.judge(claim(), claims.Finding(untested="no record"), 3)[0] == "not tested"


def test_ledger_is_checked(tmp_path, monkeypatch):
    assert len({c.id for c in claims.load_ledger().claims}) == len(claims.load_ledger().claims)
    content = yaml.safe_load((RECIPES / "claims.yaml").read_text())
    content["claims"][0]["tolerence"] = 1
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(claims, "RECIPES", tmp_path)
    with pytest.raises(claims.UserError, match=r"claims\.0\.tolerence"):
        claims.load_ledger()


def test_size_and_speed_claims(tiny):
    found = {row["id"]: row for row in claims.judge_all(tiny, claims.load_ledger())}
    assert found["smaller"]["value"] == pytest.approx(1 - 66_362_880 / 109_482_240)
    assert found["parameters_distilbert"]["value"] == pytest.approx(66.362880)
    assert found["parameters_bert"]["value"] == pytest.approx(109.482240)
    assert found["smaller"]["verdict"] == "supported"
    record = scores.benchmark_record(tiny, "size_speed")
    # The ratio of two totals inside the wider of both bounds; the setting is named.
    passes = {
        name: {maker: np.array(each) for maker, each in measured["pass_seconds"].items()}
        for name, measured in record.measured.extra.items()
    }
    totals = [
        seconds[f"bert/{maker}"].sum() / seconds[f"distilbert/{maker}"].sum()
        for seconds in passes.values()
        for maker in shared.MAKERS
    ]
    lows = [
        min(
            (passes[name][f"bert/{maker}"] / passes[name][f"distilbert/{maker}"]).min(),
            measured["over_pairs"][maker]["low"],
        )
        for name, measured in record.measured.extra.items()
        for maker in shared.MAKERS
    ]
    faster = found["faster"]
    assert any(faster["value"] == pytest.approx(total) for total in totals)
    assert faster["low"] == pytest.approx(min(lows)) and faster["low"] < faster["value"]
    assert faster["value"] < faster["high"] and faster["interval"] == "over 3 passes and pairs"
    assert "with 1 thread" in faster["detail"] or "with 2 threads" in faster["detail"]
    assert faster["scale"] == "paper size"


def test_reduced_results_are_indications_only(tiny):
    found = {row["id"]: row for row in claims.judge_all(tiny, claims.load_ledger())}
    for name in ("glue", "sst2"):
        assert found[name]["verdict"] == "not tested"
        assert found[name]["scale"] == "embedded scale"
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
        assert "embedded scale" in found[name]["reason"]
    for name in ("imdb", "loss_ce", "phone_speed"):
        assert found[name]["verdict"] == "not tested" and found[name]["value"] is None


def test_paper_scale_with_a_distilled_student_is_judged(results, tmp_path):
    models = RECIPE["models"] | {"student": {"label": "distilled", "weights": "minilm"}}
    recipe = make_recipe(
        tmp_path, scale="paper", models=models, student="student", tasks=["sst2", "rte"]
    )
    write_evidence(recipe)
    ledger = claims.load_ledger()
    sst2 = next(c for c in ledger.claims if c.id == "sst2")
    finding = claims.find(sst2, recipe)
    assert not finding.untested and finding.scale == "paper scale" and finding.seeds == 2
    rows = scores.score_rows(recipe)
    mean = {
        row["model"]: row["over_seeds"]["mean"]
        for row in rows
        if row["task"] == "sst2" and row["primary"]
    }
    assert finding.value == pytest.approx(100 * (mean["student"] - mean["teacher"]))
    glue = claims.find(next(c for c in ledger.claims if c.id == "glue"), recipe)
    assert "only on 2 of the claim's 9 tasks" in glue.untested
    control = claims.find(
        claim(kind="retention", reference="undistilled", tasks=["sst2", "rte"]), recipe
    )
    assert not control.untested and control.low <= control.value <= control.high


def test_a_difference_that_is_not_shown_is_said_to_be_none():
    helps = claim(expected=0.0, tolerance=0.0, direction="at most")
    found = claims.Finding(value=-1.0, low=-3.0, high=1.0)
    assert claims.judge(helps, found, 3)[0] == "partly"
    assert "no difference is shown" in claims.judge(helps, found, 3)[1]
    inside = claims.Finding(value=-2.0, low=-3.0, high=-1.0, seeds=3, incomplete="on 2 of 9 tasks")
    assert claims.judge(helps, inside, 3) == (
        "partly",
        "inside the supporting range, but on 2 of 9 tasks",
    )


def test_little_difference_is_judged_on_both_sides():
    mlm = next(c for c in claims.load_ledger().claims if c.id == "loss_mlm")
    for value, verdict in ((-0.3, "supported"), (-5.0, "not supported"), (5.0, "not supported")):
        found = claims.Finding(value=value, low=value - 0.2, high=value + 0.2, seeds=3)
        assert claims.judge(mlm, found, 3)[0] == verdict


def test_other_recipes_speak_beside_ones_own(results, tmp_path):
    """A reduced verdict from the other recipe's record; own evidence comes first in its column."""
    ledger = claims.load_ledger()
    study = make_recipe(tmp_path, name="other", scale="reduced", tasks=["sst2"])
    write_evidence(study)
    rows = claims.judge_all(study, ledger)
    path = study.folder.parent / "study" / "claims" / "verdicts.json"
    with recording(
        path, stage="claims", cell={}, scale="reduced", recipe="study", settings={}
    ) as draft:
        draft.metrics = {"claims": rows}
    own = make_recipe(tmp_path)
    write_evidence(own)
    mine = claims.judge_all(own, ledger)
    cells = {row["id"]: row for row in claims.evidence_by_column(own, ledger, mine)}
    [sst2] = [row for row in rows if row["id"] == "sst2"]
    assert cells["sst2"]["reduced"]["recipe"] == "study"
    assert cells["sst2"]["reduced"]["verdict"] == sst2["column_verdict"] != "not tested"
    assert sst2["verdict"] == "not tested"  # an indication never decides
    assert cells["sst2"]["reproduction"] == {"verdict": "not tested", "reason": "not run"}
    assert cells["smaller"]["replication"]["recipe"] == own.name
    assert cells["phone_size"]["replication"]["verdict"] == "not tested"


def test_a_student_that_is_only_cut_is_no_distilled_student(results, tmp_path):
    recipe = make_recipe(tmp_path, student="undistilled")
    write_evidence(recipe)
    glue = next(c for c in claims.load_ledger().claims if c.id == "glue")
    assert "not distilled" in claims.find(glue, recipe).untested


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
    budgets = {row["model"]: row["tokens"] for row in distillation.budget_rows(recipe)}
    assert budgets == {"undistilled": 0, "distilled": 4500, "distilled_short": 2250, "alone": 18000}
    claim_ce = next(c for c in claims.load_ledger().claims if c.id == "loss_ce")
    assert "no ce against short" in claims.find(claim_ce, recipe).detail
    order = comparisons.order_rows(recipe, ["random_initialisation", "without_ce", "without_mlm"])
    assert [(r["lower"], r["upper"]) for r in order] == [("random_initialisation", "without_ce")]
    assert order[0]["gap"]["estimate"] > 0.1  # 0.6 below 0.8


def test_missing_records_are_no_evidence(results, tmp_path):
    recipe = make_recipe(tmp_path)
    found = claims.judge_all(recipe, claims.load_ledger())
    assert {row["verdict"] for row in found} == {"not tested"}
    assert scores.provenance(recipe)["missing"]
    assert scores.score_rows(recipe) == []


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
            cell.outputs[0].parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(columns).to_parquet(cell.outputs[0])
            with recording(cell.record, **cell.provenance):
                pass
    (row,) = lost.lost_rows(recipe, "undistilled", "teacher")
    assert (row["task"], row["agreement"], row["kl"]) == ("squad", pytest.approx(0.6), None)
    assert row["shares"] == pytest.approx(
        {"both": 0.4, "only_teacher": 0.2, "only_student": 0.2, "neither": 0.2}
    )
    assert row["calibration"] is None and row["teacher_agreement"] is None
    assert {found["task"] for found in lost.error_rows(recipe, "tokens")} == {"squad"}


def test_figures_are_equal_byte_by_byte(tiny):
    contents = []
    for _ in range(2):
        figures.use_style()
        figure, axes = plt.subplots()
        axes.plot([1, 2, 4], label="a line")
        axes.legend()
        figures.save_figure(figure, tiny, "line")
        plt.close(figure)
        contents.append((tiny.folder / "figures" / "line.svg").read_bytes())
    assert contents[0] == contents[1]


def test_table_refuses_nan(tiny):
    with pytest.raises(ValueError, match="JSON"):
        figures.save_table(tiny, "bad", {"score": float("nan")})


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_sources_are_stripped(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1


@pytest.mark.parametrize("document", ["report", "poster"])
def test_nobody_types_a_measured_number(document):
    text = (CODE.parent / document / f"{document}.typ").read_text()
    typed = re.findall(r"(\d[\d.]*)\s*(?:\s%|points|seconds|GFLOP|MB|ms|×)", text)
    assert set(typed) <= {"95", "97", "40", "60"}  # the level, and the question itself


def test_report_without_tables_says_what_to_do(results, tmp_path):
    with pytest.raises(build_report.UserError, match="make notebooks"):
        build_report.typeset("report", make_recipe(tmp_path))


def test_from_records_to_report_and_poster(results, tmp_path, monkeypatch):
    """With every benchmark, of a machine without bf16 instructions."""
    monkeypatch.setitem(RATES, "bf16_gflops", None)
    monkeypatch.setitem(RATES, "bf16", shared.NO_BF16)
    recipe = make_recipe(
        tmp_path,
        training_speed={"examples": 64, "rounds": 3},
        distillation_speed={"rounds": 2, "sequences": 24},
        corpus_speed={"compared_mb": 1, "memory_mb": [1, 2]},
        question_answering_speed={"questions": 40, "rounds": 2},
    )
    write_evidence(recipe)
    commands = publication.publication_commands(recipe)
    commands.pop("report")  # would write the PDFs of the project
    subprocess.run(commands.pop("claims")[1], check=True, capture_output=True)
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for _, command in commands.values()
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
    table = json.loads((recipe.folder / "tables" / "study.json").read_text())
    assert table["scale"] == recipe.scale and not table["evidence"]["missing"]
    step = json.loads((recipe.folder / "tables" / "distillation.json").read_text())["step"]
    assert step["bf16"] == shared.NO_BF16
    assert [row["variant"] for row in step["rows"]] == ["textbook_fp32", "ours_fp32"]
    for document in ("report", "poster"):
        pdf = build_report.typeset(document, recipe)
        assert pdf.startswith(b"%PDF") and pdf == build_report.typeset(document, recipe)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1, "the poster is one page"
