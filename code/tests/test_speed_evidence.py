"""From the records of benchmarks to rows: old and new records, with bf16 and without."""

import copy
import json

import pytest
from committed import committed

from distilbert_kit.study.evidence import speed
from distilbert_kit.study.records import Record


def benchmark(stage: str) -> Record:
    """A record of the study as it is committed."""
    return Record.model_validate_json(committed(f"results/study/benchmark/{stage}.json"))


def without_bf16(record: Record) -> Record:
    """The record as a machine without bf16 instructions writes it."""

    def kept(value):
        if isinstance(value, dict):
            return {
                name: None if name == "bf16_gflops" else kept(each)
                for name, each in value.items()
                if name.endswith("gflops") or "bf16" not in name
            }
        return value

    record = copy.deepcopy(record)
    record.metrics, record.measured.extra = kept(record.metrics), kept(record.measured.extra)
    return record


def test_ratio_of_totals_is_the_papers_and_lies_in_the_range_of_the_rounds():
    assert speed.ratio_of_totals([668], [410])["ratio"] == pytest.approx(1.629, abs=1e-3)
    found = speed.ratio_of_totals([10.0, 30.0], [10.0, 10.0])
    assert found == {"ratio": 2.0, "low": 1.0, "high": 3.0, "rounds": 2}


def test_size_and_speed_of_a_record_come_from_its_pass_totals():
    record = benchmark("size_speed")
    for row in speed.speed_rows(record):
        passes = record.measured.extra[f"threads_{row['threads']}"]["pass_seconds"]
        bert, distilbert = (passes[f"{m}/{row['maker']}"] for m in ("bert", "distilbert"))
        assert row["ratio"] == pytest.approx(sum(bert) / sum(distilbert))
        assert row["ratio"] == pytest.approx(row["seconds"]["bert"] / row["seconds"]["distilbert"])
        each = [a / b for a, b in zip(bert, distilbert, strict=True)]
        assert (row["low"], row["high"]) == (min(each), max(each))
        assert row["low"] < row["ratio"] < row["high"] and row["rounds"] == len(bert)


@pytest.mark.parametrize("bf16", [True, False])
def test_distillation_step_compares_within_a_precision(bf16):
    record = benchmark("distillation_speed")
    if not bf16:
        record = without_bf16(record)
    step = speed.distillation_step(record)
    bf16 = bf16 and record.measured.extra["bf16_gflops"] is not None
    assert step["precision"] == ("bf16" if bf16 else "fp32")
    assert step["peak_gflops"] == record.measured.extra[f"{step['precision']}_gflops"]
    rows = {row["variant"]: row for row in step["rows"]}
    assert set(rows) == set(record.measured.extra["seconds"])
    assert len(rows) == (4 if bf16 else 2)
    seconds = record.measured.extra["seconds"]
    for name, row in rows.items():
        maker, precision = name.split("_")
        assert 0 < row["share"] < 1
        if maker == "ours":
            assert row["over_ours"] is row["over_best"] is None
            continue
        expected = sum(seconds[name]) / sum(seconds[f"ours_{precision}"])
        assert row["over_ours"]["ratio"] == pytest.approx(expected)
        best = sum(seconds[name]) / sum(seconds[f"ours_{step['precision']}"])
        assert row["over_best"]["ratio"] == pytest.approx(best)
    assert rows["ours_fp32"]["loss"] == record.measured.extra["loss"]["ours_fp32_relative"]
    json.dumps(step, allow_nan=False)


def test_loss_in_bf16_counts_where_the_head_answered_in_it():
    record = benchmark("distillation_speed")
    losses = record.measured.extra["loss"] | {"ours_bf16_relative": 1e-5}
    record.measured.extra |= {"bf16_gflops": 400.0, "loss": losses}
    record.measured.extra["seconds"].setdefault("ours_bf16", [1.0])
    record.measured.extra["peak_memory_bytes"].setdefault("ours_bf16", 1)
    for dtype, loss in (("bfloat16", 1e-5), ("float32", None)):
        losses["head_dtype"] = {"bf16": dtype}
        rows = {row["variant"]: row for row in speed.distillation_rows(record)}
        assert rows["ours_bf16"]["loss"] == loss


def test_fine_tuning_is_first_held_against_the_trainer_at_its_best():
    record = benchmark("training_speed")
    rows = speed.training_rows(record)
    seconds = record.measured.extra["seconds"]
    assert rows[0]["over_ours"] is None and "at its best" in rows[1]["name"]
    best = sum(seconds[speed.trainer_at_its_best(record)]) / sum(seconds["ours"])
    assert rows[1]["over_ours"]["ratio"] == pytest.approx(best)
    assert len(rows) == len(seconds) and all(0 < r["dev_accuracy"]["mean"] < 1 for r in rows)


def test_a_machine_without_bf16_has_the_trainer_at_its_best_too():
    record = benchmark("training_speed")
    seconds = {"ours": [1.0], "trainer_fp32_grouped": [2.0], "trainer_fp32": [4.0]}
    record.measured.extra = {"seconds": seconds, "bf16_gflops": None}
    record.metrics["dev_accuracy"] = {name: {"mean": 0.8} for name in seconds}
    ratios = [row["over_ours"] and row["over_ours"]["ratio"] for row in speed.training_rows(record)]
    assert ratios == [None, 2.0, 4.0]


def test_answering_preparing_and_padded_batches_are_ratios_of_totals():
    for stage, function, names in (
        ("question_answering_speed", speed.answering, ("textbook", "ours")),
        ("corpus_speed", speed.preparing, ("slow", "ours")),
    ):
        record = benchmark(stage)
        theirs, ours = (record.measured.extra["seconds"][name] for name in names)
        found = function(record)["over_ours"]
        assert found["ratio"] == pytest.approx(sum(theirs) / sum(ours))
        assert found["low"] <= found["ratio"] <= found["high"]
        assert function(None) is None
    record = benchmark("inference_speed")
    passes = record.measured.extra["file_order"]
    rows = {row["what"]: row for row in speed.inference_rows(record)}
    found = rows["STS-B dev pairs, batches of 8"]
    assert found["ratio"] == pytest.approx(
        sum(passes["padded_8_seconds"]) / sum(passes["ours_seconds"])
    )
