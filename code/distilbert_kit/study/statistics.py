"""Intervals over seeds and examples, paired tests, and the share of a teacher's score retained.

Every random draw comes from a numpy Generator made of the given seed, and every result is made of
plain numbers, ready for JSON. Bootstrap intervals are percentile intervals (scipy.stats.bootstrap).
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ..errors import UserError

ScoreFunction = Callable[..., ArrayLike]


Run = tuple[ArrayLike, ArrayLike, ArrayLike]  # teacher's predictions, student's, references: [N]


_BATCH_ELEMENTS = 4_000_000  # 32 MB of indices at a time


def summarise(values: Sequence[float], level: float = 0.95) -> dict:
    """Scores of several seeds -> {"n", "mean", "median", "sd", "low", "high"}.

    `sd` has n - 1 in the denominator; low and high are Student's t-interval of the mean. One seed
    carries no information on the spread: these three are then None.
    """
    values = _finite("values", values)
    n, mean = len(values), values.mean()
    sd = half = None
    if n > 1:
        sd = float(values.std(ddof=1))
        half = stats.t.ppf((1 + level) / 2, n - 1) * sd / math.sqrt(n)
    return {
        "n": n,
        "mean": float(mean),
        "median": float(np.median(values)),
        "sd": sd,
        "low": None if half is None else float(mean - half),
        "high": None if half is None else float(mean + half),
    }


def bootstrap_interval(
    score_fn: ScoreFunction,
    predictions: ArrayLike,
    references: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float]:
    """Interval of a score over the examples [N] -> {"estimate", "low", "high"}.

    `score_fn(predictions, references)` gives one number; if it takes `axis` too, it is called once
    for many resamples [B, N] (see `metrics.score_function`). UserError below two examples.
    """
    predictions, references = _aligned(predictions, references)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return _score(score_fn, index, predictions, references)

    return _interval(
        statistic(np.arange(len(references))),
        _resample(statistic, len(references), resamples, _rng(seed)),
        level,
    )


def bootstrap_ratio_interval(
    a: ArrayLike, b: ArrayLike, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Median of the paired ratios a_i / b_i, such as latencies -> {"estimate", "low", "high"}.

    Pairs measured back to back share the machine's state, so their ratio is steadier than the
    ratio of two medians. UserError unless both are positive, finite and equally long (two or more).
    """
    a, b = _aligned(_finite("a", a), _finite("b", b))
    if (a <= 0).any() or (b <= 0).any():
        raise UserError("ratios need positive values: check the measured times")
    ratios = a / b

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.median(ratios[index], axis=-1)

    return _interval(np.median(ratios), _resample(statistic, len(a), resamples, _rng(seed)), level)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> dict[str, float]:
    """Exact two-sided McNemar test of two classifiers on the same examples -> {"b", "c", "p"}.

    Inputs [N] say which examples each got right. b: only A right; c: only B right. Under the null
    hypothesis b is binomial with n = b + c and probability 1/2; p is 1 when they never differ.
    """
    a, b = (values.astype(bool) for values in _aligned(correct_a, correct_b, least=1))
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    discordant = only_a + only_b
    p = float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return {"b": only_a, "c": only_b, "p": p}


def paired_bootstrap(
    score_fn: ScoreFunction,
    predictions_a: ArrayLike,
    predictions_b: ArrayLike,
    references: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float]:
    """Score of A minus score of B on the same examples -> {"difference", "low", "high", "p"}.

    Both are scored on the same resamples. p is two-sided: twice the share of resamples on the
    lesser side of zero, the observed sample counted in, so that it agrees with the interval and is
    never 0. `score_fn` as in `bootstrap_interval`.
    """
    a, b, references = _aligned(predictions_a, predictions_b, references)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return _score(score_fn, index, a, references) - _score(score_fn, index, b, references)

    differences = _resample(statistic, len(references), resamples, _rng(seed))
    interval = _interval(statistic(np.arange(len(references))), differences, level)
    lesser = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (lesser + 1) / (resamples + 1))
    return {"difference": interval.pop("estimate"), **interval, "p": float(p)}


def wilson_interval(successes: int, n: int, level: float = 0.95) -> dict[str, float]:
    """Wilson's interval of a proportion -> {"estimate", "low", "high"}; UserError if n is 0."""
    if not 0 <= successes <= n or n == 0:
        raise UserError(f"no proportion from {successes} of {n}: give 0 <= successes <= n, n > 0")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return {
        "estimate": successes / n,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def retention(
    teacher: Mapping[str, float | None],
    student: Mapping[str, float | None],
    exclude: Collection[str] = (),
    chance: Mapping[str, float] | None = None,
) -> float:
    """Mean student score over mean teacher score, task by task {task: score}, on one scale.

    This is the paper's 97 % (arXiv 1910.01108, Table 1). With `chance` {task: score of guessing},
    the guessed part is taken off every task on both sides first: at the majority rate a student
    retains nothing, which the plain ratio hides.
    Raises UserError for a task with a missing, None or NaN score on either side (a mean over fewer
    tasks is another number), for an unknown name in `exclude`, and for a teacher at chance.
    """
    tasks = _tasks({**teacher, **student}, exclude)
    baseline = _cells("chance", chance, tasks) if chance is not None else np.zeros(len(tasks))
    scores = (_cells("teacher", teacher, tasks), _cells("student", student, tasks))
    return float(_retained(*scores, baseline))


def retention_interval(
    runs: Mapping[str, Sequence[Run]],
    score_fns: ScoreFunction | Mapping[str, ScoreFunction],
    exclude: Collection[str] = (),
    chance: Mapping[str, float] | None = None,
    level: float = 0.95,
    **sampling,
) -> dict:
    """Retention with an interval over seeds and examples.

    Returns {"estimate", "low", "high", "seeds"}.
    `runs`: {task: [(teacher's predictions [N], student's predictions [N], references [N]), …]},
    one entry per seed, whose teacher and student are drawn together; `score_fns`: one function (see
    `bootstrap_interval`) or one per task; `sampling`: `resamples` (1,000), `seed` (0) and
    `aggregate`, np.mean, or np.median as in the paper, over a task's seeds. "seeds" is {task:
    number of seeds}: with one seed the interval covers the examples alone, and with few it is
    somewhat too narrow.

    All seeds of a task are tested on the same examples, so seeds and examples are crossed: each
    resample draws seeds, and one set of examples for all of them (the pigeonhole bootstrap, Owen
    2007, doi:10.1214/07-AOAS122). Drawing examples anew for each seed would treat S seeds as S
    test sets and shrink the interval. UserError if a task's references differ between seeds, and
    as in `retention`.
    """
    tasks = _tasks(runs, exclude)
    observed, resampled = _crossed_bootstrap(tasks, runs, score_fns, **sampling)
    baseline = _cells("chance", chance, tasks) if chance is not None else np.zeros(len(tasks))
    estimate, ratios = _retained(*observed, baseline), _retained(*resampled, baseline)
    return _interval(estimate, ratios, level) | {"seeds": {t: len(runs[t]) for t in tasks}}


def macro_gap_interval(
    runs: Mapping[str, Sequence[Run]],
    score_fns: ScoreFunction | Mapping[str, ScoreFunction],
    level: float = 0.95,
    **sampling,
) -> dict:
    """Student's mean score over the tasks minus the teacher's; all else as `retention_interval`."""
    tasks = _tasks(runs, ())
    (teacher, student), (teachers, students) = _crossed_bootstrap(
        tasks, runs, score_fns, **sampling
    )
    gaps = _interval((student - teacher).mean(), (students - teachers).mean(axis=0), level)
    return gaps | {"seeds": {t: len(runs[t]) for t in tasks}}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order (family-wise error)."""
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise UserError("holm: every p value must lie between 0 and 1: check the tests")
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = steps
    return adjusted.tolist()


def _crossed_bootstrap(
    tasks: Sequence[str],
    runs: Mapping[str, Sequence[Run]],
    score_fns: ScoreFunction | Mapping[str, ScoreFunction],
    resamples: int = 1000,
    seed: int = 0,
    aggregate: Callable[..., ArrayLike] = np.mean,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores over seeds, observed [2, T] and resampled [2, T, B]: teacher, then student."""
    rng, observed, resampled = _rng(seed), [], []
    for task in tasks:
        score_fn = score_fns[task] if isinstance(score_fns, Mapping) else score_fns
        scores, draws = _task_scores(task, runs[task], score_fn, resamples, rng)
        picked = rng.integers(len(scores), size=(len(scores), resamples))
        observed.append(aggregate(scores, axis=0))
        resampled.append(aggregate(np.take_along_axis(draws, picked[:, None, :], axis=0), axis=0))
    return np.stack(observed, axis=1), np.stack(resampled, axis=1)


def _task_scores(
    task: str,
    runs: Sequence[Run],
    score_fn: ScoreFunction,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [S, 2] (teacher, student) of each seed, and [S, 2, B] on shared resamples."""
    if not runs:
        raise UserError(f"retention: no runs of {task}: run it, or exclude the task")
    runs = [_aligned(*run) for run in runs]
    references = runs[0][2]
    if not all(np.array_equal(run[2], references) for run in runs):
        raise UserError(
            f"retention: the references of {task} differ between seeds: test all on one split"
        )

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.stack([[_score(score_fn, index, p, references) for p in run[:2]] for run in runs])

    everything = np.arange(len(references))
    return statistic(everything), _resample(statistic, len(references), resamples, rng)


def _score(score_fn: ScoreFunction, index: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
    """Scores [...] of the examples at index [..., N], in one call if the function takes `axis`."""
    if "axis" in inspect.signature(score_fn).parameters:
        return np.asarray(score_fn(*(values[index] for values in arrays), axis=-1))
    rows = index.reshape(-1, index.shape[-1])
    scores = [float(score_fn(*(values[row] for values in arrays))) for row in rows]
    return np.array(scores).reshape(index.shape[:-1])


def _resample(statistic: Callable, n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """A statistic of example indices [..., n] on `resamples` bootstrap samples -> [..., B]."""
    result = stats.bootstrap(
        (np.arange(n),),
        statistic,
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // n),
        vectorized=True,
        method="percentile",
        rng=rng,
    )
    return result.bootstrap_distribution


def _interval(estimate: ArrayLike, distribution: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.quantile(distribution, [(1 - level) / 2, (1 + level) / 2])
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}


def _retained(teacher: np.ndarray, student: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Ratio of the means above chance over the first axis (tasks) of [T] or [T, B]."""
    chance = chance.reshape(-1, *[1] * (teacher.ndim - 1))
    above = (teacher - chance).mean(axis=0)
    if (above <= 0).any():
        raise UserError(
            "retention: the teacher's mean score is not above chance: exclude the tasks that it"
            " did not learn"
        )
    return (student - chance).mean(axis=0) / above


def _tasks(cells: Mapping[str, object], exclude: Collection[str]) -> list[str]:
    if unknown := [name for name in exclude if name not in cells]:
        raise UserError(
            f"retention: cannot exclude {unknown[0]!r}: it is not among {', '.join(cells)}"
        )
    tasks = [task for task in cells if task not in exclude]
    if not tasks:
        raise UserError("retention: no tasks: give the scores of at least one")
    return tasks


def _cells(side: str, scores: Mapping[str, float | None], tasks: Sequence[str]) -> np.ndarray:
    for task in tasks:
        if scores.get(task) is None or not math.isfinite(scores[task]):
            raise UserError(
                f"retention: no {side} score for {task}: run that cell, or exclude the task"
            )
    return np.array([scores[task] for task in tasks], dtype=np.float64)


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise UserError(f"{name}: need a list of finite numbers, at least one: check the records")
    return values


def _aligned(*arrays: ArrayLike, least: int = 2) -> list[np.ndarray]:
    arrays = [np.asarray(values) for values in arrays]
    sizes = [len(values) for values in arrays]
    if len(set(sizes)) > 1 or sizes[0] < least:
        raise UserError(
            f"cannot compare arrays of {', '.join(map(str, sizes))} examples: give the same"
            f" examples in the same order, at least {least}"
        )
    return arrays


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
