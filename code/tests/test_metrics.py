"""Metrics against scikit-learn's and scipy's definitions, hand-worked cases and properties."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn import metrics as sk

from distilbert_kit import metrics
from distilbert_kit.data.tasks import TASKS
from distilbert_kit.errors import UserError
from distilbert_kit.metrics import (
    METRICS,
    agreement,
    answer_scores,
    compute_confusion_matrix,
    compute_metrics,
    compute_precision_recall_f1,
    expected_calibration_error,
    four_way_split,
    normalize_answer,
    score_function,
)
from distilbert_kit.study.task_metric import TaskMetric

pytestmark = pytest.mark.filterwarnings("error")

CLASSIFICATION = ("accuracy", "f1", "precision", "recall", "matthews")
CORRELATIONS = ("pearson", "spearman")


def pairs(values, min_size=1):
    return st.lists(st.tuples(values, values), min_size=min_size, max_size=40).map(
        lambda rows: tuple(np.array(rows).T)
    )


classes = st.integers(2, 4).flatmap(lambda c: st.tuples(st.just(c), pairs(st.integers(0, c - 1))))


def test_binary_metrics_by_hand():
    # tp 2, fp 1, fn 1, tn 4
    predictions, references = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    found = compute_metrics(CLASSIFICATION, predictions, references, 2)
    expected = {"accuracy": 6 / 8, "f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3}
    expected["matthews"] = (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)
    assert found == pytest.approx(expected)
    assert compute_confusion_matrix(predictions, references, 2) == [[4, 1], [1, 2]]


def test_f1_belongs_to_class_one_not_to_class_zero():
    predictions, references = [0, 0, 0, 1], [0, 0, 1, 1]
    assert compute_metrics(["f1"], predictions, references)["f1"] == pytest.approx(2 / 3)
    flipped = compute_metrics(["f1"], [1, 1, 1, 0], [1, 1, 0, 0], 2)["f1"]
    assert flipped == pytest.approx(4 / 5)


def test_confusion_matrix_rows_are_references():
    assert compute_confusion_matrix([2, 2], [0, 1], 3) == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]


@given(classes)
def test_classification_equals_definitions(case):
    num_labels, (p, r) = case
    found = compute_metrics(CLASSIFICATION, p, r, num_labels)
    matrix = np.array(compute_confusion_matrix(p, r, num_labels))
    assert matrix.sum() == len(p)
    assert found["accuracy"] == pytest.approx(np.trace(matrix) / len(p))
    hits, predicted, actual = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    kept = [1] if num_labels == 2 else np.flatnonzero(predicted + actual)
    precision = [hits[k] / predicted[k] if predicted[k] else 0 for k in kept]
    recall = [hits[k] / actual[k] if actual[k] else 0 for k in kept]
    f1 = [2 * hits[k] / (predicted[k] + actual[k]) if hits[k] else 0 for k in kept]
    for name, values in {"precision": precision, "recall": recall, "f1": f1}.items():
        assert found[name] == pytest.approx(np.mean(values))
    # Gorodkin's R_K, the multi-class Matthews coefficient
    n = len(p)
    spread = (n**2 - (predicted**2).sum()) * (n**2 - (actual**2).sum())
    covariance = np.trace(matrix) * n - predicted @ actual
    expected = covariance / math.sqrt(spread) if spread else 0.0
    assert found["matthews"] == pytest.approx(expected, abs=1e-12)


@given(pairs(st.integers(-50, 50).map(lambda i: i / 10), min_size=2))
def test_correlations_equal_definitions(case):
    found = compute_metrics(CORRELATIONS, *case, 1)
    ranks = [
        [(v < x).sum() + ((v == x).sum() + 1) / 2 for x in v] for v in case
    ]  # ties share their mean rank
    for name, (x, y) in {"pearson": case, "spearman": ranks}.items():
        varies = np.ptp(x) > 0 and np.ptp(y) > 0
        expected = np.corrcoef(x, y)[0, 1] if varies else 0.0
        assert found[name] == pytest.approx(expected, abs=1e-9)


@given(pairs(st.floats(-1e100, 1e100)))
def test_correlations_are_always_finite(case):
    found = compute_metrics(CORRELATIONS, *case, 1)
    assert all(-1 - 1e-9 <= value <= 1 + 1e-9 for value in found.values())


@pytest.mark.parametrize("name", METRICS)
def test_constant_predictions_are_a_number(name):
    references = [1, 0, 1, 1]
    found = compute_metrics([name], [0, 0, 0, 0], references, 2)[name]
    assert found == (0.25 if name == "accuracy" else 0.0)
    assert compute_metrics([name], [0], [1], 2)[name] == 0.0
    assert not math.isnan(compute_metrics([name], [1], [1], 2)[name])


@pytest.mark.parametrize(
    ("name", "num_labels"),
    # over two classes the two correlations are the same
    [(n, 2) for n in METRICS] + [("f1", 3), ("matthews", 3), ("pearson", 6), ("spearman", 6)],
)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_bootstrap_form_equals_plain_form(name, num_labels, data):
    cases = data.draw(
        st.lists(
            st.lists(st.tuples(*[st.integers(0, num_labels - 1)] * 2), min_size=5, max_size=5),
            min_size=1,
            max_size=4,
        )
    )
    p, r = np.moveaxis(np.array(cases), -1, 0)
    expected = [compute_metrics([name], a, b, num_labels)[name] for a, b in zip(p, r)]
    function = score_function(name, num_labels)
    assert [function(a, b) for a, b in zip(p, r)] == pytest.approx(expected)
    if name in CORRELATIONS or (num_labels == 2 and name not in ("precision", "recall")):
        assert function(p, r, axis=-1).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("names", "predictions", "references", "num_labels", "words"),
    [
        (["bleu"], [1], [1], 2, "bleu"),
        (["accuracy"], [], [], 2, "no examples"),
        (["accuracy"], [1, 0], [1], 2, "pair up"),
        (["accuracy"], [[0.1, 0.9]], [1], 2, "pair up"),
        (["accuracy"], [[1, 0]], [[1, 0]], 2, "pair up"),
        (["accuracy"], [1, 0], [-1, -1], 2, "class -1"),
        (["f1"], [2, 0], [1, 0], 2, "class 2 is outside 0 … 1"),
        (["pearson", "f1"], [2, 0], [1, 0], 2, "class 2"),
        (["accuracy"], [0.4], [1], 2, "class 0.4"),
        (["pearson"], [math.nan, 1.0], [1.0, 2.0], 1, "prediction is not finite"),
        (["pearson"], [2.0, 1.0], [1.0, math.inf], 1, "reference is not finite"),
    ],
)
def test_bad_input_is_named(names, predictions, references, num_labels, words):
    with pytest.raises(UserError, match=words):
        compute_metrics(names, predictions, references, num_labels)


def test_macro_average_and_third_class():
    p, r = [0, 1, 2, 2], [0, 1, 1, 2]
    found = compute_precision_recall_f1(p, r, average="macro")
    assert found == pytest.approx(
        {"precision": (1 + 1 + 0.5) / 3, "recall": (1 + 0.5 + 1) / 3, "f1": (1 + 4 / 3) / 3}
    )
    with pytest.raises(UserError, match="class 2"):
        compute_precision_recall_f1(p, r)


CLASSIFIED = [task for task in TASKS.values() if task.kind == "classification"]


@pytest.mark.parametrize("task", CLASSIFIED, ids=lambda t: t.name)
def test_every_task_can_be_scored(task):
    references = np.arange(6) % max(task.num_labels, 2)
    found = compute_metrics(task.metrics, references, references, task.num_labels)
    assert found == pytest.approx(dict.fromkeys(task.metrics, 1.0))
    assert task.primary in found


def test_calibration_by_hand():
    probabilities = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5]]
    found = expected_calibration_error(probabilities, [0, 1, 1, 0], bins=2)
    # 0.5 is closed into the lower bin: right at confidence 0.5; above: 2 of 3 right at 0.8
    assert found["expected_calibration_error"] == pytest.approx(
        1 / 4 * abs(1 - 0.5) + 3 / 4 * abs(2 / 3 - 0.8)
    )
    lower, upper = found["bins"]
    assert lower == {"lower": 0, "upper": 0.5, "count": 1, "confidence": 0.5, "accuracy": 1}
    assert (upper["count"], upper["accuracy"]) == (3, pytest.approx(2 / 3))
    assert upper["confidence"] == pytest.approx((0.9 + 0.8 + 0.7) / 3)


@given(st.integers(1, 20), st.integers(2, 4), st.integers(1, 60), st.integers(0, 999))
def test_calibration_equals_a_loop_over_bins(bins, num_labels, n, seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(num_labels), size=n)
    references = rng.integers(num_labels, size=n)
    found = expected_calibration_error(probabilities, references, bins)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == references
    error = 0.0
    for i, row in enumerate(found["bins"]):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        assert row["count"] == inside.sum()
        assert (row["accuracy"] is None) == (not inside.any())
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found["expected_calibration_error"] == pytest.approx(error)


def test_sure_and_right_is_calibrated_and_logits_are_refused():
    assert expected_calibration_error(np.eye(3), [0, 1, 2])["expected_calibration_error"] == 0
    assert expected_calibration_error(np.eye(3), [1, 2, 0])["expected_calibration_error"] == 1
    # rounding may leave a sum above one; a confidence is never above it
    assert expected_calibration_error([[1.0005, 0.0]], [0])["expected_calibration_error"] == 0
    for bad in ([[3.0, -2.0]], [[0.6, 0.6]], [0.5, 0.5]):
        with pytest.raises(UserError, match="softmax"):
            expected_calibration_error(bad, [0])
    with pytest.raises(UserError, match="class 2"):
        expected_calibration_error([[0.5, 0.5]], [2])
    with pytest.raises(UserError):
        expected_calibration_error(np.empty((0, 2)), [])


@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 999))
def test_agreement_equals_scipy_entropy(n, num_labels, seed):
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(scale=3, size=(2, n, num_labels))
    found = agreement(teacher, student)
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (teacher, student))
    assert found["kl"] == pytest.approx(stats.entropy(p, q, axis=1).mean())
    assert found["agreement"] == pytest.approx(
        sk.accuracy_score(teacher.argmax(1), student.argmax(1))
    )
    same = agreement(teacher, teacher + 5.0)  # a shift of all logits changes nothing
    assert same == pytest.approx({"agreement": 1.0, "kl": 0.0}, abs=1e-12)
    assert same["kl"] >= 0


def test_agreement_is_teacher_first_and_survives_large_logits():
    teacher, student = np.log([[0.75, 0.25]]), np.log([[0.5, 0.5]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert agreement(teacher, student)["kl"] == pytest.approx(expected)
    assert agreement([[1e4, 0.0]], [[0.0, 1e4]])["kl"] == pytest.approx(1e4)
    for good, bad in (
        ([[0.0, 1.0]], [[0.0, 1.0]] * 2),
        ([[0.0, 1.0]], [[math.nan, 0.0]]),
        ([0.0, 1.0], [0.0, 1.0]),
        (np.empty((0, 2)), np.empty((0, 2))),
    ):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(UserError, match="agreement"):
                agreement(*pair)


@given(pairs(st.booleans()))
def test_four_way_split_counts_every_example_once(case):
    teacher, student = case
    found = four_way_split(teacher, student)
    assert sum(found.values()) == len(teacher)
    assert found["both"] + found["only_teacher"] == teacher.sum()
    assert found["both"] + found["only_student"] == student.sum()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("A.", ""),
        ("the-atre", "theatre"),  # punctuation goes first, so no article is left over
        ("theatre and another", "theatre and another"),
        ("Saint–Denis", "saint–denis"),  # only ASCII punctuation
        ("", ""),
    ],
)
def test_normalize_answer(text, expected):
    assert normalize_answer(text) == expected


@given(st.text(max_size=30))
def test_an_answer_matches_itself(text):
    exact, f1 = answer_scores(text, ["something else entirely", text])
    assert exact == 1.0
    assert f1 == (1.0 if normalize_answer(text) else 0.0)


SQUAD = TaskMetric(config_name="squad", keep_in_memory=True)


def test_squad_by_hand():
    references = [
        ["the Denver Broncos", "Broncos"],
        ["Santa Clara, California", "Levi's Stadium in Santa Clara"],
        ["new york new york"],
        ["gold"],
        ["blue"],
    ]
    predictions = [
        "denver broncos.",
        "Santa Clara",  # 2/2 and 2/3 -> 0.8 beats 2/2 and 2/5
        "new york new york city",  # tokens are a multiset: 4/5 and 4/4
        "silver",
        "",
    ]
    found = SQUAD.compute(predictions=predictions, references=references)
    assert found == pytest.approx({"exact_match": 1 / 5, "f1": (1 + 0.8 + 8 / 9 + 0 + 0) / 5})


@given(st.text("ab c", max_size=12), st.lists(st.text("ab c", max_size=12), min_size=1))
def test_squad_f1_bounds_exact_match_and_grows_with_golds(prediction, golds):
    exact, f1 = answer_scores(prediction, golds)
    assert 0 <= f1 <= 1
    assert f1 >= exact or not normalize_answer(prediction)
    first = answer_scores(prediction, golds[:1])
    assert first[0] <= exact and first[1] <= f1


def test_squad_refuses_what_cannot_be_scored():
    for predictions, references in (([], []), (["x"], [[]])):
        with pytest.raises(UserError):
            SQUAD.compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match="Mismatch"):
        SQUAD.compute(predictions=["x", "y"], references=[["x"]])


def test_metric_module_loads_in_evaluate_without_network(tmp_path):
    """A separate process with an empty cache, hub access allowed, and every connection refused."""
    script = Path(metrics.__file__).with_name("study") / "task_metric.py"
    program = f"""
import socket
def refuse(*args, **kwargs):
    raise SystemExit("the network was used")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
from distilbert_kit.metrics import compute_metrics
found = evaluate.load({str(script)!r}, "squad").compute(
    predictions=["a blue sky", "x"], references=[["sky", "blue sky"], ["y"]])
assert found == {{"exact_match": 0.5, "f1": 0.5}}, found
for task, p, r, n in (("cola", [0, 1, 1], [0, 1, 0], 2), ("stsb", [0.1, 2.5, 4], [0, 3, 2.2], 1)):
    found = evaluate.load({str(script)!r}, task).compute(predictions=p, references=r)
    names = {{"cola": ("matthews", "accuracy"), "stsb": ("pearson", "spearman")}}[task]
    assert found == compute_metrics(names, p, r, n), found
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    code = str(script.parents[1])
    environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": code}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
