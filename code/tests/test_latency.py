"""The latency stage: its backends agree, its rows are whole, what it lacks is said."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from benchmarks import latency, shared
from distilbert_kit.machine import matrix_instructions
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.serve.export import size_on_disk
from distilbert_kit.study import answers, tables
from distilbert_kit.study.deployment import random_batch
from distilbert_kit.study.drawings import deployment as draw
from distilbert_kit.study.evidence import latency as evidence
from distilbert_kit.study.settings import BACKENDS, ENCODERS, LatencySettings

NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_layers": 1}
SETTINGS = {"seconds": 0.001, "least_rounds": 2, "text_length": 8}


@pytest.fixture(scope="module")
def small():
    """Narrow models of both sizes."""
    with pytest.MonkeyPatch.context() as patch:
        for models in latency.SIZES.values():
            for name, config in list(models.items()):
                patch.setitem(models, name, replace(config, **NARROW))
        yield


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(latency.SIZES["paper"], "distilbert")
        folders = latency.save_models("paper", tmp_path_factory.mktemp("models"), ["onnx_int8"])
    return folders["bert"]


@pytest.fixture(scope="module")
def found(small):
    """What the stage measures with one backend that runs and one without a compiler."""
    pairs = [("a fine film", "a dull plot"), ("fine actors", "dull jokes")]
    names = ["torch_ours", "torch_compiled"]
    settings = LatencySettings(**SETTINGS, backends=names, lengths=[8, 16], batches=[1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        bar = SimpleNamespace(update=lambda: None)
        return latency.measure_size("study", settings, pairs, bar)


def record_of(found):
    extra = found | {"instructions": ["avx2"], "rates": {}}
    measured = SimpleNamespace(extra=extra, machine={"cpu": "a processor"})
    return SimpleNamespace(measured=measured, stage_version=2)


def test_settings_name_the_backends_that_there_are():
    assert list(latency.BACKENDS) == list(BACKENDS)
    assert latency.SIZES.keys() == ENCODERS.keys()


@pytest.mark.parametrize(
    ("backend", "tolerance"),
    [
        ("torch_transformers", 1e-5),
        ("torch_bf16", 0.02),
        ("torch_int8", 0.05),
        ("onnx_fp32", 1e-5),
        ("onnx_int8", 0.05),
    ],
)
def test_backends_agree_with_eager_after_saving_and_loading(folder, backend, tolerance):
    eager = latency.BACKENDS["torch_ours"](folder)
    other = latency.BACKENDS[backend](folder)
    for batch in (random_batch(eager, 8), random_batch(eager, 24)):
        expected = shared.classify(eager, batch)
        got = shared.classify(other, batch).float()
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    assert size_on_disk(latency.read_by(backend, folder))["bytes"] > 0


@pytest.mark.parametrize(("precision", "linear"), [("fp32", "MatMul"), ("int8", "Dynamic")])
def test_operators_of_a_graph_are_timed_and_none_looks_for_empty_rows(folder, precision, linear):
    item = random_batch(latency.load_ours(folder), 24)
    times = latency.operator_times(latency.read_by(f"onnx_{precision}", folder), item, 2)
    assert any(name.startswith(linear) for name in times) and "Softmax" in times
    assert min(times.values()) >= 0 and sum(times.values()) > 0
    assert "IsNaN" not in times


def test_rows_are_whole_and_a_missing_compiler_is_a_row(found):
    points = len(shared.thread_counts()) * 2 * 2 * 2  # batches, lengths, models
    measured = [row for row in found["rows"] if "p50" in row]
    assert len(measured) == points
    for row in measured:
        assert row["backend"] == "torch_ours" and 0 < row["p50"] <= row["p90"] <= row["p99"]
        assert row["calls"] >= 2
    missing = [row for row in found["rows"] if "not_measured" in row]
    assert {row["model"] for row in missing} == {"minilm", "distilminilm"}
    assert {row["not_measured"] for row in missing} == {latency.NO_COMPILER}
    for row in found["starts"]:
        assert row["size"] == "study" and row["bytes"] > 0
        assert min(row["seconds"].values()) > 0 and row["largest_logit_difference"] == 0
        assert 0 < row["peak_memory_bytes"]["1"] <= row["peak_memory_bytes"]["2"]
    for row in found["texts"]:
        assert row["texts_per_second"] > 0 and row["text_tokens"] == 8
        assert row["model"] in ("minilm", "distilminilm")
        assert row["one_text"]["both"]["p99"] > row["one_text"]["tokenise"]["p50"] > 0


def test_what_a_machine_lacks_is_said(monkeypatch):
    monkeypatch.setattr(latency.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(latency, "has_bf16_instructions", lambda: False)
    for backend in ("torch_int8", "onnx_fp32", "onnx_int8"):
        assert latency.why_not(backend) == "not measured: not installed"
    monkeypatch.setattr(latency.shutil, "which", lambda name: name)
    monkeypatch.setattr(latency.torch, "__file__", "/my projects/torch/__init__.py")
    assert latency.why_not("torch_compiled") == latency.SPACE
    assert latency.why_not("torch_bf16") == "not measured: no bf16 instructions"
    assert latency.why_not("torch_ours") is latency.why_not("torch_transformers") is None


class Clock:
    """A process whose calls last as long as they have tokens."""

    def __init__(self, pace):
        self.pace = pace

    def submit(self, _, item):
        seconds = item["input_ids"].numel() * self.pace
        return SimpleNamespace(result=lambda: (0.0, seconds))


def test_a_call_that_would_last_too_long_is_left_out_and_quantiles_are_numpys():
    config = create_model_config("MiniLM-L6", **NARROW)
    model = DistilBERTForSequenceClassification(config, 2)
    settings = LatencySettings(**SETTINGS | {"seconds": 0.4}, lengths=[16, 128], longest_call=1.0)
    workers = {"slow": Clock(0.01), "quick": Clock(0.001)}
    pace, rows = {}, {}
    for row in latency.measure_points(workers, settings, 1, model, pace):
        rows[row.pop("key"), row["length"]] = row
    assert rows["slow", 16]["p50"] == rows["slow", 16]["p99"] == 160
    assert rows["slow", 128]["not_measured"] == latency.TOO_LONG
    assert rows["quick", 128]["p50"] == 128 and rows["quick", 128]["calls"] >= 2
    assert rows["quick", 16]["calls"] > rows["slow", 16]["calls"]
    assert pace == pytest.approx({"slow": 0.01, "quick": 0.001})
    assert latency.foresee(workers, pace, 128, settings)[1] == ["slow"]
    values = np.random.default_rng(0).random(300)
    assert latency.quantiles(values)["p90"] == pytest.approx(1e3 * np.quantile(values, 0.9), 1e-4)


def test_table_compares_at_equal_points_and_never_matches_a_phone():
    def row(model, backend, p50, **point):
        place = {"size": "paper", "threads": 1, "batch": 1, "length": 16}
        return place | point | {"model": model, "backend": backend, "p50": p50}

    rows = [
        row("bert", "torch_ours", 8.0),
        row("distilbert", "torch_ours", 4.0),
        row("bert", "onnx_int8", 2.0),
        row("bert", "onnx_int8", 1.0, length=64),  # without its eager counterpart
        {"size": "paper", "model": "bert", "backend": "torch_int8", "not_measured": "why"},
    ]
    start = {"size": "paper", "model": "distilbert", "backend": "torch_ours", "bytes": 265_000_000}
    record = record_of({"rows": rows, "starts": [start], "texts": []})
    assert [row["ratio"] for row in evidence.over_eager(record)] == [4.0]
    assert [row["ratio"] for row in evidence.student_faster(record)] == [2.0]
    size, speed = evidence.on_device_rows(record, {"phone_size": 207, "phone_speed": 1.71})
    assert size["here"] == 265 and size["away"] == pytest.approx(265 / 207 - 1)
    assert speed["here"] == 2.0 and {size["verdict"], speed["verdict"]} == {
        "not the paper's device"
    }
    assert [row["not_measured"] for row in evidence.not_measured(record)] == ["why"]


def test_shares_are_those_of_the_time_of_the_int8_graph():
    times = {"DynamicQuantizeMatMul": 5.0, "MatMul": 2.0, "FusedMatMul": 1.0, "Gelu": 2.0}
    row = {"size": "paper", "model": "bert", "length": 512}
    graphs = [row | {"backend": f"onnx_{p}", "milliseconds": times} for p in ("fp32", "int8")]
    record = record_of({"operators": graphs})
    assert evidence.int8_shares(record) == [row | {"in_8_bits": 0.5, "attention": 0.3}]
    rows = evidence.operator_rows(record)
    assert [r["milliseconds"] for r in rows if r["backend"] == "onnx_int8"] == [5, 2, 1, 2]
    assert rows[0] == row | {
        "backend": "onnx_fp32",
        "operator": "DynamicQuantizeMatMul",
        "milliseconds": 5.0,
    }
    assert evidence.operator_rows(record_of({})) == evidence.int8_shares(record_of({})) == []


def test_table_figures_and_answer_of_a_measured_record(found, tiny, monkeypatch):
    latency_settings = LatencySettings(**SETTINGS)
    recipe = tiny.model_copy(update={"latency": latency_settings})
    monkeypatch.setattr(tables, "benchmark_record", lambda *_: record_of(found))
    table = tables.latency(recipe)
    json.dumps(table, allow_nan=False)
    assert {row["model"] for row in table["pareto"]} >= {recipe.teacher, recipe.student}
    assert "as fast as its teacher" in answers.latency(table)
    draw.latency(table["rows"], 1)
    draw.pareto(recipe, table["pareto"])
    monkeypatch.setattr(tables, "benchmark_record", lambda *_: None)
    table = tables.latency(recipe)
    assert table["note"] == evidence.NO_RECORD and "No answer yet" in answers.latency(table)
    draw.pareto(recipe, table["pareto"])


def test_instructions_are_those_for_products_of_matrices(monkeypatch):
    flags = {"flags": "sse4_2 avx2 avx512_vnni amx_int8 fma fpu"}
    monkeypatch.setattr("distilbert_kit.machine._cpuinfo", lambda: flags)
    assert matrix_instructions() == ["amx_int8", "avx2", "avx512_vnni", "fma"]


def test_a_backend_that_is_not_known_is_an_error():
    for name, known in (("backends", "torch_ours"), ("sizes", "paper, study")):
        with pytest.raises(ValidationError, match=rf"{name}(.|\n)*'tensor': choose from {known}"):
            LatencySettings(seconds=1, **{name: ["tensor"]})


@pytest.mark.parametrize(("kind", "types"), [("Bert", True), ("DistilBert", False)])
def test_a_random_batch_suits_transformers_models_too(kind, types):
    config = getattr(transformers, f"{kind}Config")(vocab_size=10)
    model = SimpleNamespace(config=config)
    assert ("token_type_ids" in random_batch(model, 4)) == types
