"""Intervals and tests against scipy, hand-worked cases, enumeration and the paper's own figures."""

import itertools
import json
import math
from statistics import stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score

from distilbert_kit.errors import UserError
from distilbert_kit.metrics import score_function
from distilbert_kit.study import statistics
from distilbert_kit.study.statistics import (
    bootstrap_interval,
    bootstrap_ratio_interval,
    holm,
    mcnemar,
    paired_bootstrap,
    retention,
    retention_interval,
    summarise,
    wilson_interval,
)

pytestmark = pytest.mark.filterwarnings("error")
settings.register_profile("statistics", deadline=None, max_examples=50)
settings.load_profile("statistics")
ACCURACY = score_function("accuracy")

# arXiv 1910.01108v4, Table 1 (GLUE dev sets, medians of 5 runs). MNLI of BERT-base is 84.7 as in
# the authors' README: the paper prints 86.7, which its own mean of 79.5 contradicts.
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
BERT = dict(zip(GLUE, (56.3, 84.7, 88.6, 91.8, 89.6, 69.3, 92.7, 89.0, 53.5)))
DISTILBERT = dict(zip(GLUE, (51.3, 82.2, 87.5, 89.2, 88.5, 59.9, 91.3, 86.9, 56.3)))


def noisy(references, accuracy, rng):
    """Binary predictions that are right with the given probability."""
    return np.where(rng.random(len(references)) < accuracy, references, 1 - references)


# --- seeds ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_summary_equals_scipy(values):
    found = summarise(values)
    assert (found["n"], found["median"]) == (len(values), pytest.approx(np.median(values)))
    assert found["sd"] == pytest.approx(stdev(values), abs=1e-9)
    if stdev(values) > 1e-9:
        scale = stdev(values) / math.sqrt(len(values))
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
        assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_summary_by_hand_and_of_one_seed():
    found = summarise([1, 2, 3])  # sd 1, t(0.975, 2) = 4.303 from the printed table
    assert (found["mean"], found["sd"]) == (2, 1)
    assert found["high"] == pytest.approx(2 + 4.303 / math.sqrt(3), abs=1e-3)
    one = {"n": 1, "mean": 0.5, "median": 0.5, "sd": None, "low": None, "high": None}
    assert summarise([0.5]) == one
    equal = summarise([0.5, 0.5])
    assert (equal["sd"], equal["low"], equal["high"]) == (0, 0.5, 0.5)
    for bad in ([], [0.5, math.nan], [[0.5]]):
        with pytest.raises(UserError):
            summarise(bad)


# --- examples ------------------------------------------------------------------------------------


def test_interval_is_that_of_the_exact_bootstrap_distribution():
    """Four examples have 4^4 resamples: enumerate them all."""
    predictions, references = np.array([1, 1, 0, 0]), np.array([1, 1, 1, 0])
    right = predictions == references
    every = [right[list(index)].mean() for index in itertools.product(range(4), repeat=4)]
    found = bootstrap_interval(ACCURACY, predictions, references, resamples=20_000, level=0.8)
    assert found["estimate"] == 0.75
    assert [found["low"], found["high"]] == np.quantile(every, [0.1, 0.9]).tolist()


def test_interval_width_follows_the_binomial():
    rng = np.random.default_rng(3)
    references = rng.integers(2, size=2000)
    predictions = noisy(references, 0.8, rng)
    found = bootstrap_interval(ACCURACY, predictions, references, resamples=4000)
    p = found["estimate"]
    half = 1.96 * math.sqrt(p * (1 - p) / 2000)
    assert (found["low"], found["high"]) == pytest.approx((p - half, p + half), abs=0.002)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews", "spearman"])
def test_one_call_for_all_resamples_equals_one_call_each(name, monkeypatch):
    rng = np.random.default_rng(0)
    references = rng.integers(2, size=50)
    predictions = noisy(references, 0.8, rng)
    vectorised = score_function(name)
    found = bootstrap_interval(vectorised, predictions, references, resamples=200, seed=5)
    plain = bootstrap_interval(
        lambda p, r: vectorised(p, r), predictions, references, resamples=200, seed=5
    )
    assert found == pytest.approx(plain)
    monkeypatch.setattr(statistics, "_BATCH_ELEMENTS", 50 * 7)  # 7 resamples at a time
    assert bootstrap_interval(vectorised, predictions, references, resamples=200, seed=5) == found


def test_the_seed_decides_the_draws():
    rng = np.random.default_rng(0)
    references = rng.integers(2, size=97)
    predictions = noisy(references, 0.7, rng)

    def interval(seed):
        return bootstrap_interval(ACCURACY, predictions, references, resamples=50, seed=seed)

    assert interval(1) == interval(1)
    assert len({tuple(interval(seed).values()) for seed in range(5)}) > 1


def test_predictions_and_references_stay_paired():
    """Drawn apart, perfect predictions would not stay perfect."""
    references = np.arange(30) % 2
    found = bootstrap_interval(ACCURACY, references, references, resamples=100)
    assert found == {"estimate": 1.0, "low": 1.0, "high": 1.0}


def test_ratio_of_latencies():
    rng = np.random.default_rng(1)
    student = rng.uniform(1, 2, size=200)
    found = bootstrap_ratio_interval(1.6 * student, student)
    assert list(found.values()) == pytest.approx([1.6, 1.6, 1.6])  # paired: machine noise cancels
    teacher = student * rng.uniform(1.5, 1.7, size=200)
    found = bootstrap_ratio_interval(teacher, student, resamples=2000)
    assert found["low"] < found["estimate"] == np.median(teacher / student) < found["high"]
    # the order-statistic interval of a median: ranks from the binomial(n, 1/2)
    ranks = stats.binom.ppf([0.025, 0.975], 200, 0.5).astype(int)
    expected = np.sort(teacher / student)[ranks]
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=0.006)
    for a, b in (([1, 2], [1, 0]), ([1, 2], [1]), ([1, math.inf], [1, 1]), ([1], [1])):
        with pytest.raises(UserError):
            bootstrap_ratio_interval(a, b)


# --- paired tests --------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    a = [1] * 10 + [1] * 1 + [0] * 7 + [0] * 3
    b = [1] * 10 + [0] * 1 + [1] * 7 + [0] * 3
    # 1 of 8 discordant: 2 * (C(8,0) + C(8,1)) / 2^8
    assert mcnemar(a, b) == pytest.approx({"b": 1, "c": 7, "p": 2 * 9 / 256})
    assert mcnemar(a, a) == {"b": 0, "c": 0, "p": 1.0}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_symmetric_and_exact(rows):
    a, b = np.array(rows).T
    found, swapped = mcnemar(a, b), mcnemar(b, a)
    assert (found["b"], found["c"]) == (swapped["c"], swapped["b"])
    assert found["p"] == pytest.approx(swapped["p"])
    n, k = found["b"] + found["c"], min(found["b"], found["c"])
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert found["p"] == pytest.approx(min(1.0, 2 * tail))


def test_paired_bootstrap_sees_what_single_intervals_hide():
    rng = np.random.default_rng(0)
    references = rng.integers(2, size=400)
    b = noisy(references, 0.7, rng)
    a = b.copy()
    wrong = np.flatnonzero(b != references)[:12]
    a[wrong] = references[wrong]  # A is B with 12 errors mended
    found = paired_bootstrap(ACCURACY, a, b, references, resamples=2000)
    assert found["difference"] == pytest.approx(12 / 400)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["p"] == 2 / 2001
    alone = [bootstrap_interval(ACCURACY, p, references) for p in (a, b)]
    assert alone[0]["low"] < alone[1]["high"]


def test_paired_bootstrap_of_equals_and_of_swapped_models():
    rng = np.random.default_rng(2)
    references = rng.integers(2, size=100)
    a, b = noisy(references, 0.8, rng), noisy(references, 0.75, rng)
    same = paired_bootstrap(ACCURACY, a, a, references, resamples=99)
    assert same == {"difference": 0, "low": 0, "high": 0, "p": 1}
    one = paired_bootstrap(ACCURACY, a, b, references, resamples=300)
    other = paired_bootstrap(ACCURACY, b, a, references, resamples=300)
    assert one["difference"] == pytest.approx(-other["difference"])
    assert (one["low"], one["p"]) == pytest.approx((-other["high"], other["p"]))


def test_paired_p_values_are_near_mcnemars():
    rng = np.random.default_rng(4)
    for accuracy in (0.80, 0.76):
        references = rng.integers(2, size=1000)
        a, b = noisy(references, 0.8, rng), noisy(references, accuracy, rng)
        exact = mcnemar(a == references, b == references)["p"]
        found = paired_bootstrap(ACCURACY, a, b, references, resamples=4000)["p"]
        assert found == pytest.approx(exact, abs=0.06)


def test_wilson_by_hand():
    # successes 0: the upper end is z^2 / (n + z^2)
    z2 = 1.959964**2
    assert wilson_interval(0, 10) == pytest.approx(
        {"estimate": 0, "low": 0, "high": z2 / (10 + z2)}, abs=1e-6
    )
    # WNLI, 40 of 71: about 11.5 points to either side
    found = wilson_interval(40, 71)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(0.115, abs=0.003)
    for bad in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(UserError):
            wilson_interval(*bad)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_inverts_the_score_test(case):
    """Each end is a proportion whose score test is just significant at 5 %."""
    successes, n = case
    found = wilson_interval(successes, n)
    z = stats.norm.ppf(0.975)
    for end in (found["low"], found["high"]):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n))


def test_holm_by_hand():
    # sorted 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, never falling
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(UserError):
        holm([0.5, math.nan])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_procedure_rejects(p_values, alpha):
    rejected = set()
    for step, i in enumerate(np.argsort(p_values)):
        # the same product as in the definition p <= alpha / (m - step), without the division
        if p_values[i] * (len(p_values) - step) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


# --- retention -----------------------------------------------------------------------------------


def test_retention_of_the_paper():
    assert round(retention(BERT, DISTILBERT), 3) == 0.969
    assert round(retention(BERT, DISTILBERT, exclude=("wnli",)), 3) == 0.962
    assert retention(BERT, DISTILBERT) == pytest.approx(
        sum(DISTILBERT.values()) / sum(BERT.values())
    )


def test_retention_above_chance_by_hand():
    teacher, student, chance = {"a": 0.9, "b": 0.6}, {"a": 0.8, "b": 0.4}, {"a": 0.5, "b": 0.0}
    assert retention(teacher, student, chance=chance) == pytest.approx((0.3 + 0.4) / (0.4 + 0.6))
    assert retention(teacher, chance, chance=chance) == 0  # a student that guesses
    assert retention(teacher, chance) == pytest.approx(0.5 / 1.5)  # looks like a third
    with pytest.raises(UserError, match="not above chance"):
        retention(chance, student, chance=chance)


@given(
    st.lists(st.tuples(st.floats(0.1, 1), st.floats(0, 1)), min_size=1, max_size=9),
    st.floats(0.5, 100),
)
def test_retention_does_not_depend_on_scale_or_order(scores, scale):
    teacher = {f"task{i}": t for i, (t, _) in enumerate(scores)}
    student = {f"task{i}": s for i, (_, s) in enumerate(scores)}
    found = retention(teacher, student)
    assert retention(teacher, teacher) == pytest.approx(1)
    assert retention(teacher, dict(reversed(student.items()))) == pytest.approx(found)
    scaled = [{task: scale * v for task, v in side.items()} for side in (teacher, student)]
    assert retention(*scaled) == pytest.approx(found)


@pytest.mark.parametrize("hole", ["missing", None, math.nan])
@pytest.mark.parametrize("side", ["teacher", "student", "chance"])
def test_a_missing_cell_is_never_averaged_over(side, hole):
    cells = {"teacher": dict(BERT), "student": dict(DISTILBERT), "chance": dict.fromkeys(GLUE, 0)}
    if hole == "missing":
        del cells[side]["rte"]
    else:
        cells[side]["rte"] = hole
    with pytest.raises(UserError, match=f"no {side} score for rte"):
        retention(**cells)
    assert 0.9 < retention(**cells, exclude=("rte",)) < 1


def test_an_exclusion_that_excludes_nothing_is_refused():
    with pytest.raises(UserError, match="WNLI"):
        retention(BERT, DISTILBERT, exclude=("WNLI",))
    with pytest.raises(UserError, match="no tasks"):
        retention({"a": 1.0}, {"a": 1.0}, exclude=("a",))


def make_runs(seeds, n=300, tasks=("x", "y"), spread=0.0):
    """Per task: teacher about 90 % right and student about 80 %, give or take `spread`."""
    rng = np.random.default_rng(7)
    runs = {}
    for task in tasks:
        references = rng.integers(2, size=n)
        runs[task] = [
            (
                noisy(references, 0.9, rng),
                noisy(references, 0.8 + rng.uniform(-spread, spread), rng),
                references,
            )
            for _ in range(seeds)
        ]
    return runs


@pytest.mark.parametrize("aggregate", [np.mean, np.median])
def test_interval_is_centred_on_the_plain_retention(aggregate):
    runs = make_runs(seeds=3)
    teacher, student = (
        {
            task: aggregate([accuracy_score(run[2], run[side]) for run in seeds])
            for task, seeds in runs.items()
        }
        for side in (0, 1)
    )
    chance = {"x": 0.5, "y": 0.5}
    for options in ({}, {"chance": chance}, {"exclude": ("y",)}):
        found = retention_interval(runs, ACCURACY, aggregate=aggregate, **options)
        assert found["estimate"] == pytest.approx(retention(teacher, student, **options))
        assert found["low"] < found["estimate"] < found["high"]
    assert found["seeds"] == {"x": 3}


def test_interval_matches_a_naive_double_loop():
    runs = make_runs(seeds=4, n=60, spread=0.1)
    rng = np.random.default_rng(11)
    ratios = []
    for _ in range(3000):
        sums = np.zeros(2)
        for seeds in runs.values():
            examples = rng.integers(60, size=60)
            for pick in rng.integers(len(seeds), size=len(seeds)):
                teacher, student, references = (v[examples] for v in seeds[pick])
                sums += (teacher == references).mean(), (student == references).mean()
        ratios.append(sums[1] / sums[0])
    found = retention_interval(runs, ACCURACY, resamples=3000)
    expected = np.quantile(ratios, [0.025, 0.975])
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=0.01)


def test_copies_of_a_seed_add_no_information():
    """The examples are shared by all seeds: five equal runs are worth one."""
    one = make_runs(seeds=1)
    five = {task: seeds * 5 for task, seeds in one.items()}
    narrow, wide = (retention_interval(runs, ACCURACY, resamples=3000) for runs in (five, one))
    assert narrow["high"] - narrow["low"] == pytest.approx(wide["high"] - wide["low"], rel=0.1)


def test_spread_between_seeds_widens_the_interval():
    widths = []
    for spread in (0.0, 0.3):
        found = retention_interval(make_runs(seeds=5, n=2000, spread=spread), ACCURACY)
        widths.append(found["high"] - found["low"])
    assert widths[1] > 1.5 * widths[0]


def test_score_functions_per_task_and_plain_ones():
    runs = make_runs(seeds=2, n=40)
    functions = {"x": ACCURACY, "y": lambda p, r: accuracy_score(r, p)}
    mixed, plain = (retention_interval(runs, f, resamples=50) for f in (functions, ACCURACY))
    assert mixed.pop("seeds") == plain.pop("seeds")
    assert mixed == pytest.approx(plain)


def test_interval_refuses_unlike_references_and_empty_tasks():
    runs = make_runs(seeds=2)
    teacher, student, references = runs["x"][1]
    unlike = {**runs, "x": [runs["x"][0], (teacher, student, 1 - references)]}
    for bad, words in ((unlike, "references of x differ"), ({**runs, "y": []}, "no runs of y")):
        with pytest.raises(UserError, match=words):
            retention_interval(bad, ACCURACY, resamples=10)


def test_everything_is_json():
    runs = make_runs(seeds=2, n=30)
    teacher, student, references = runs["x"][0]
    results = [
        summarise(np.float32([0.5, 0.25])),
        bootstrap_interval(ACCURACY, teacher, references, resamples=20),
        bootstrap_ratio_interval([1.0, 2.0], [2.0, 3.0], resamples=20),
        mcnemar(teacher == references, student == references),
        paired_bootstrap(ACCURACY, teacher, student, references, resamples=20),
        wilson_interval(np.int64(3), np.int64(9)),
        retention(BERT, DISTILBERT),
        retention_interval(runs, ACCURACY, resamples=20),
        holm(np.array([0.1, 0.2])),
    ]
    assert json.loads(json.dumps(results)) == results


def test_unequal_lengths_are_refused():
    for call in (
        lambda: bootstrap_interval(ACCURACY, [1, 0], [1]),
        lambda: bootstrap_interval(ACCURACY, [1], [1]),
        lambda: mcnemar([1, 0], [1]),
        lambda: mcnemar([], []),
        lambda: paired_bootstrap(ACCURACY, [1, 0], [1, 0], [1, 0, 1]),
    ):
        with pytest.raises(UserError, match="examples"):
            call()
