"""What is retained over the tokens of distillation: the line, its errors, and its target."""

import math

import numpy as np
import pytest
from scipy import stats
from test_statistics import scores_of

from distilbert_kit.errors import UserError
from distilbert_kit.study.statistics import Scores, curve_over_tokens

pytestmark = pytest.mark.filterwarnings("error")


def test_curve_finds_the_line_and_where_it_reaches_the_target():
    tokens = [1e6, 3e6, 1e7]
    kept = [0.5 + 0.05 * math.log10(count) for count in tokens]
    scores = {"x": scores_of([[0.8, *(0.8 * k for k in kept)]], example_variance=1e-8)}
    found = curve_over_tokens(tokens, scores, target=0.97, budget=1e10)
    assert found["slope"]["estimate"] == pytest.approx(0.05)
    assert found["at_budget"]["estimate"] == pytest.approx(1.0)
    reached = found["log10_tokens"]
    assert reached["estimate"] == pytest.approx(9.4)
    assert reached["low"] < 9.4 < reached["high"]
    assert found["largest_residual"] == pytest.approx(0, abs=1e-9)


def test_curve_is_the_least_squares_fit_and_its_errors_are_those_of_a_simulation():
    """Students that share their teacher and their examples, over two tasks."""
    rng = np.random.default_rng(4)
    tokens = [1e6, 3e6, 1e7, 1e8]
    mean = np.array([0.8, 0.61, 0.66, 0.67, 0.75])
    root = 0.002 * rng.normal(size=(2, 5, 5))
    tasks = {
        name: Scores(mean, np.zeros((5, 5)), r @ r.T, mean[None], 10**9)
        for name, r in zip("xy", root)
    }
    found = curve_over_tokens(tokens, tasks, target=0.97, budget=1e9)
    x = np.log10(tokens)
    slope, intercept = np.polyfit(x, mean[1:] / mean[0], 1)
    assert found["points"] == pytest.approx(list(mean[1:] / mean[0]))
    assert (found["slope"]["estimate"], found["intercept"]) == pytest.approx((slope, intercept))
    assert found["at_budget"]["estimate"] == pytest.approx(intercept + 9 * slope)
    residuals = mean[1:] / mean[0] - intercept - slope * x
    assert found["largest_residual"] == pytest.approx(np.abs(residuals).max())
    draws = mean + np.mean([rng.normal(size=(40_000, 5)) @ r.T for r in root], axis=0)
    slopes, intercepts = np.polyfit(x, (draws[:, 1:] / draws[:, :1]).T, 1)
    for name, values in (("slope", slopes), ("at_budget", intercepts + 9 * slopes)):
        assert found[name]["standard_error"] == pytest.approx(values.std(), rel=0.02)
    # Each end is a number of tokens at which the line is just told apart from the target.
    reached, t = found["log10_tokens"], stats.t.ppf(0.975, 10**9)
    assert reached["low"] < reached["estimate"] < reached["high"]
    for end in (reached["low"], reached["high"]):
        error = (intercepts + end * slopes).std()
        assert abs(intercept + end * slope - 0.97) == pytest.approx(t * error, rel=0.03)


def test_ends_of_the_target_are_just_told_apart_from_it_with_few_seeds():
    """With as many degrees of freedom as the line has where it reaches the target."""
    rng, tokens = np.random.default_rng(5), [1e6, 3e6, 1e7, 1e8]
    mean = [0.8, 0.61, 0.65, 0.68, 0.75]
    tasks = {
        name: scores_of(rng.normal(mean, 0.004, (seeds, 5)), example_variance=1e-6, examples=200)
        for name, seeds in (("x", 3), ("y", 6))
    }

    def line_at(log10_tokens):
        return curve_over_tokens(tokens, tasks, 0.97, budget=10**log10_tokens)["at_budget"]

    reached = curve_over_tokens(tokens, tasks, 0.97, budget=1e9)["log10_tokens"]
    t = stats.t.ppf(0.975, line_at(reached["estimate"])["df"])
    assert reached["low"] < reached["estimate"] < reached["high"]
    for end in (reached["low"], reached["high"]):
        at = line_at(end)
        assert abs(at["estimate"] - 0.97) == pytest.approx(t * at["standard_error"])


def test_a_flat_or_doubtful_curve_promises_no_tokens():
    flat = {"x": scores_of([[0.8, 0.7, 0.7, 0.6]], example_variance=1e-4)}
    found = curve_over_tokens([1e6, 3e6, 1e7], flat, target=0.97, budget=1e10)
    assert set(found["log10_tokens"].values()) == {None}
    doubtful = {"x": scores_of([[0.8, 0.7, 0.7, 0.71]], example_variance=1e-3)}
    found = curve_over_tokens([1e6, 3e6, 1e7], doubtful, target=0.97, budget=1e10)
    assert found["slope"]["low"] < 0 and found["log10_tokens"]["high"] is None
    for too_few in ([1e6, 3e6], [1e6, 3e6, 3e6]):
        with pytest.raises(UserError, match="three budgets"):
            curve_over_tokens(too_few, flat, target=0.97, budget=1e10)
    with pytest.raises(UserError, match="more than 0 tokens"):
        curve_over_tokens([0, 3e6, 1e7], flat, target=0.97, budget=1e10)
    untaught = {"x": scores_of([[0.0, 0.1, 0.2, 0.3]], example_variance=1e-4)}
    with pytest.raises(UserError, match="above zero"):
        curve_over_tokens([1e6, 3e6, 1e7], untaught, target=0.97, budget=1e10)
