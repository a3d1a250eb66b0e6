"""One rule for every interval of scores, gaps and ratios, over seeds and examples together.

Models are fine-tuned with S seeds and tested on the same N examples. A score then varies for two
reasons: another seed trains another model, and another sample of examples asks other questions.
The rule, for whatever is built from mean scores (a score, a gap, a ratio; one task or a mean over
tasks): its variance is the sum of two parts for each task,

    seeds     the variance between seeds, divided by S, with S - 1 degrees of freedom. Two models
              are paired by seed: a seed fixes the order of the rows for both, which can move both
              alike;
    examples  what resampling the examples does to the scores of different seeds alike: the mean
              covariance, over bootstrap resamples shared by all runs, of runs of different seeds.
              That of a seed with itself is left out, as the spread between seeds holds it already.

Seeds of different tasks are independent. But where seed s of every task starts from distillation
s, it is the mean over the tasks whose spread over the seeds counts.

The interval is Student's t with the degrees of freedom of Satterthwaite (1946,
doi:10.2307/3002019) for such a sum. Ratios of means are Fieller's (1954). So few seeds cost what
they must: three have t = 4.30 and not 1.96. A percentile bootstrap that draws three seeds from
three (the pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122) is too narrow by a factor of up
to 4.30 / 1.96 * sqrt(3 / 2) = 2.7, when seeds make all of the spread. Two sources of variance in
comparisons of trained models, and why both must count: Dietterich (1998), Dror et al. (2018,
doi:10.18653/v1/P18-1128), Bouthillier et al. (2021, arXiv 2103.03098).

Shares of single answers, of one model or of two forms of it, have intervals of their own
(`wilson_interval`, `paired_shares`), which hold where few answers are wrong or none differs.

What the intervals cover is fine-tuning seeds and examples. Of a student that is distilled for every
seed (`each_seed` of its recipe), they cover distillation too; of one that was distilled once, how
much another distillation would differ is not in them.

Every random draw comes from a numpy Generator made of the given seed, and every result is made of
plain numbers, ready for JSON.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ..errors import UserError


class AtChanceError(UserError):
    """There is nothing to retain: the teacher's score is no better than guessing."""


ScoreFunction = Callable[..., np.ndarray | float]
LEVEL = 0.95
_BATCH_ELEMENTS = 4_000_000  # 32 MB of indices at a time


@dataclass(frozen=True)
class Scores:
    """Mean scores of M models on a task, and how uncertain they are, as this module's head says.

    `mean` [M]; `seed_covariance` [M, M] of the means, zero with one seed; `example_covariance`
    [M, M]; `values` [S, M], the scores of each seed. `shared_seeds`: whether seed s of this task
    has something in common with seed s of the others, as when both start from one distillation.
    """

    mean: np.ndarray
    seed_covariance: np.ndarray
    example_covariance: np.ndarray
    values: np.ndarray
    examples: int
    shared_seeds: bool = False

    @property
    def seeds(self) -> int:
        """How many seeds each model has."""
        return len(self.values)


def crossed_scores(
    runs: Sequence[Sequence[ArrayLike]],
    score_fn: ScoreFunction,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """The scores of M models on one task, each trained with the same S seeds.

    `runs` [S]: one tuple a seed, the predictions [N] of each model and then the references [N];
    `score_fn(predictions, references)` gives one number; if it takes `axis` too, it is called once
    for many resamples [B, N] (see `metrics.score_function`). UserError without runs, below two
    examples, and if the references differ between seeds: all must be tested on one split.
    """
    if not runs:
        raise UserError("no runs to compare: run them, or exclude the task")
    runs = [_aligned(*run) for run in runs]
    references, models = runs[0][-1], len(runs[0]) - 1
    if not all(np.array_equal(run[-1], references) for run in runs):
        raise UserError("the references differ between seeds: test all on one split")

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.stack(
            [[_score(score_fn, index, p, references) for p in run[:-1]] for run in runs]
        )

    values = statistic(np.arange(len(references)))
    draws = _resample(statistic, len(references), resamples, np.random.default_rng(seed))
    examples = _between_seeds(np.cov(draws.reshape(-1, resamples)), len(runs), models)
    return Scores(
        values.mean(axis=0), _covariance_of_mean(values), examples, values, len(references)
    )


def _covariance_of_mean(values: np.ndarray) -> np.ndarray:
    """Covariance [M, M] of the mean of S independent rows [S, M]; zero for one."""
    seeds, models = values.shape
    if seeds == 1:
        return np.zeros((models, models))
    return np.cov(values, rowvar=False).reshape(models, models) / seeds


def _between_seeds(covariance: ArrayLike, seeds: int, models: int) -> np.ndarray:
    """Covariance of all runs [S*M, S*M] -> mean over pairs of different seeds [M, M].

    With one seed there are no such pairs: that seed's own, then. The nearest matrix without
    negative variances, as a mean over pairs alone may have them.
    """
    blocks = np.reshape(covariance, (seeds, models, seeds, models))
    own = np.einsum("imin->mn", blocks)
    mean = own
    if seeds > 1:
        mean = (blocks.sum(axis=(0, 2)) - own) / (seeds * (seeds - 1))
    values, vectors = np.linalg.eigh((mean + mean.T) / 2)
    return (vectors * values.clip(min=0)) @ vectors.T


def score_interval(tasks: Mapping[str, Scores]) -> dict:
    """Interval of one model's mean score over the tasks.

    Returns {"estimate", "low", "high", "standard_error", "df"}.
    """
    found = list(tasks.values())
    mean = float(np.mean([scores.mean[0] for scores in found]))
    return _student(mean, *_spread(found, np.ones(1) / len(found)))


def gap_interval(tasks: Mapping[str, Scores]) -> dict:
    """Second model's mean score over the tasks minus the first's.

    Returns {"estimate", "low", "high", "standard_error", "df", "p", "seeds"}; p is that of the
    two-sided t-test of no gap, which agrees with the interval, and None where a task has one seed
    and the gap may be that seed's luck; seeds are {task: how many}.
    """
    found = list(tasks.values())
    weights = np.array([-1.0, 1.0]) / len(found)
    estimate = float(weights @ np.sum([scores.mean for scores in found], axis=0))
    error, degrees = _spread(found, weights)
    p = 1.0 if estimate == 0 else 0.0
    if any(scores.seeds < 2 for scores in found):
        p = None
    elif error > 0:
        p = float(2 * stats.t.sf(abs(estimate) / error, degrees))
    interval = _student(estimate, error, degrees)
    return interval | {"p": p, "seeds": {task: tasks[task].seeds for task in tasks}}


def ratio_interval(
    tasks: Mapping[str, Scores],
    exclude: Collection[str] = (),
    chance: Mapping[str, float] | None = None,
) -> dict:
    """Second model's mean score over the tasks, divided by the first's: what a student retains.

    Returns {"estimate", "low", "high", "standard_error", "df", "seeds"}. This is the paper's 97 %
    (arXiv 1910.01108, Table 1). With `chance` {task: score of guessing}, the guessed part is taken
    off every task on both sides first: at the majority rate a student retains nothing, which the
    plain ratio hides. The interval is Fieller's: every ratio r for which the mean of
    (student - r * teacher) is not significantly different from zero.
    UserError for no tasks, for an unknown name in `exclude`, for a task without a finite score of
    guessing, and for a teacher whose mean is not significantly above chance.
    """
    if unknown := [name for name in exclude if name not in tasks]:
        raise UserError(
            f"retention: cannot exclude {unknown[0]!r}: it is not among {', '.join(tasks)}"
        )
    if not (kept := [task for task in tasks if task not in exclude]):
        raise UserError("retention: no tasks: give the scores of at least one")
    found = [tasks[task] for task in kept]
    guessed = np.array([_guessed(task, chance) for task in kept])
    below, above = np.mean([scores.mean - g for scores, g in zip(found, guessed)], axis=0)
    if below <= 0:
        raise AtChanceError(
            "retention: the teacher's mean score is not above chance: exclude the tasks that it"
            " did not learn"
        )
    ratio = above / below
    error, degrees = _spread(found, np.array([-ratio, 1.0]) / len(found))
    t = stats.t.ppf((1 + LEVEL) / 2, degrees)
    covariance = _covariance_of_sum(found) / len(found) ** 2
    (a, b), (_, c) = np.array([[below**2, below * above], [0, above**2]]) - t**2 * covariance
    if a <= 0:
        raise AtChanceError("retention: the teacher's mean score is not told apart from chance")
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return {
        "estimate": float(ratio),
        "low": float((b - root) / a),
        "high": float((b + root) / a),
        "standard_error": error / float(below),
        "df": degrees,
        "seeds": {task: tasks[task].seeds for task in kept},
    }


def seeds_for_ratio(tasks: Mapping[str, Scores], half_width: float, most: int = 1000) -> int | None:
    """About how many seeds a task would take for a `ratio_interval` of ± `half_width`.

    By the spread that is known now: the variance of a mean of S seeds goes as 1 / S, that of the
    examples stays. None if `most` are too few, and where a task has one seed, which has no spread.
    """
    found = list(tasks.values())
    if any(scores.seeds < 2 for scores in found):
        return None
    below, above = np.mean([scores.mean for scores in found], axis=0)
    weights = np.array([-above / below, 1.0]) / len(found)
    for seeds in range(2, most + 1):
        error, degrees = _spread(found, weights, seeds)
        if error / below * stats.t.ppf((1 + LEVEL) / 2, degrees) <= half_width:
            return seeds
    return None


def _guessed(task: str, chance: Mapping[str, float] | None) -> float:
    if chance is None:
        return 0.0
    if chance.get(task) is None or not math.isfinite(chance[task]):
        raise UserError(f"retention: no score of guessing for {task}: give it, or exclude the task")
    return chance[task]


def _seed_parts(tasks: Sequence[Scores]) -> list[tuple[np.ndarray, int]]:
    """What seeds add to the covariance of the sum of the tasks' scores: independent parts [M, M].

    Each with its number of seeds. Shared seeds move all tasks together, so they are one part.
    """
    if all(scores.shared_seeds for scores in tasks):
        total = np.sum([scores.values for scores in tasks], axis=0)
        return [(_covariance_of_mean(total), len(total))]
    return [(scores.seed_covariance, scores.seeds) for scores in tasks]


def _covariance_of_sum(tasks: Sequence[Scores]) -> np.ndarray:
    """Covariance [M, M] of the sum of the tasks' mean scores."""
    of_seeds = [covariance for covariance, _ in _seed_parts(tasks)]
    return np.sum([*of_seeds, *(scores.example_covariance for scores in tasks)], axis=0)


def _spread(
    tasks: Sequence[Scores], weights: np.ndarray, planned: int | None = None
) -> tuple[float, float]:
    """Standard error and degrees of freedom of weights [M] times the sum of the mean scores.

    `planned`: as if there were so many seeds of each task.
    """
    parts, degrees = [], []
    for covariance, seeds in _seed_parts(tasks):
        then = planned or seeds
        parts.append(weights @ covariance @ weights * (seeds / then))
        degrees.append(max(then - 1, 1))
    for scores in tasks:
        parts.append(weights @ scores.example_covariance @ weights)
        degrees.append(scores.examples - 1)
    variance = float(sum(parts))
    # Rounding leaves 1e-35 where nothing varies.
    if variance <= 1e-24:
        return 0.0, float(min(degrees))
    return math.sqrt(variance), float(variance**2 / sum(p**2 / d for p, d in zip(parts, degrees)))


def _student(estimate: float, error: float, degrees: float) -> dict[str, float]:
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    return {
        "estimate": float(estimate),
        "low": float(estimate - half),
        "high": float(estimate + half),
        "standard_error": error,
        "df": degrees,
    }


def curve_over_tokens(
    tokens: Sequence[float],
    tasks: Mapping[str, Scores],
    target: float,
    budget: float,
) -> dict:
    """What is retained as a straight line over log10 of the tokens of distillation.

    `tokens` [P], at least three and all above zero; `tasks`: scores of P + 1 models by task, the
    teacher first, then the students in the order of `tokens`. The line is the least-squares fit of
    retained = intercept + slope * log10(tokens). All students answer the same examples and share
    their teacher, so the line's uncertainty follows from their joint covariance and this module's
    rule; of students that were distilled once, one more distillation is not in it.

    Returns "points", "intercept", "slope" and "at_budget" (what the line says at `budget` tokens),
    both {"estimate", "low", "high", …}; "log10_tokens" {"estimate", "low", "high"}, where the line
    reaches `target`, an end None where the interval has none (Fieller 1954; a slope that may be
    zero reaches the target anywhere or nowhere); and "largest_residual". What is retained
    saturates, so beyond the points the line promises too much, and the tokens are too few.
    UserError for fewer than three budgets, as two points fit any line, and for a teacher whose mean
    score is not above zero: there is nothing to retain.
    """
    if len(set(tokens)) < 3 or min(tokens) <= 0:
        raise UserError("a curve needs three budgets of more than 0 tokens: distil more of them")
    x = np.log10(np.asarray(tokens, dtype=np.float64))
    found = list(tasks.values())
    teacher, *students = np.mean([scores.mean for scores in found], axis=0)
    if teacher <= 0:
        raise UserError("a curve needs a teacher whose mean score is above zero: train it longer")
    points = np.array(students) / teacher
    fit = np.linalg.pinv(np.stack([np.ones_like(x), x], axis=1))  # [2, P]
    line = fit @ points
    # d(points) = (d(students) - points * d(teacher)) / teacher, a mean over the tasks
    per_run = np.concatenate([-(fit @ points)[:, None], fit], axis=1) / (teacher * len(found))

    def along(at: Sequence[float]) -> dict:
        return _student(np.asarray(at) @ line, *_spread(found, np.asarray(at) @ per_run))

    covariance = per_run @ _covariance_of_sum(found) @ per_run.T
    reached = (target - line[0]) / line[1] if line[1] > 0 else None
    low = high = None
    if reached is not None:
        t = stats.t.ppf((1 + LEVEL) / 2, along([1, reached])["df"])
        low, high = _reaches(line, t**2 * covariance, target)
    return {
        "points": points.tolist(),
        "intercept": float(line[0]),
        "slope": along([0, 1]),
        "at_budget": along([1, math.log10(budget)]),
        "log10_tokens": {"estimate": reached and float(reached), "low": low, "high": high},
        "largest_residual": float(np.abs(line[0] + line[1] * x - points).max()),
    }


def _reaches(line: np.ndarray, spread: np.ndarray, target: float) -> tuple:
    """Ends of {x: (a + b x - target)^2 <= (1, x) spread (1, x)'}; None for an end that is open."""
    a, b = line[0] - target, line[1]
    square, linear, constant = (
        b**2 - spread[1, 1],
        a * b - spread[0, 1],
        a**2 - spread[0, 0],
    )
    if square <= 0:
        return None, None
    root = math.sqrt(max(linear**2 - square * constant, 0.0))
    return float((-linear - root) / square), float((-linear + root) / square)


def summarise(values: Sequence[float]) -> dict:
    """Scores of several seeds -> {"n", "mean", "median", "sd"}; sd (n - 1) is None for one."""
    found = _finite("values", values)
    return {
        "n": len(found),
        "mean": float(found.mean()),
        "median": float(np.median(found)),
        "sd": float(found.std(ddof=1)) if len(found) > 1 else None,
    }


def wilson_interval(successes: int, n: int) -> dict[str, float]:
    """Wilson's interval of a proportion -> {"estimate", "low", "high"}; UserError if n is 0."""
    if not 0 <= successes <= n or n == 0:
        raise UserError(f"no proportion from {successes} of {n}: give 0 <= successes <= n, n > 0")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return {
        "estimate": successes / n,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def paired_shares(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The second share of right answers minus the first, on the same examples.

    Both are bool [N]. {"estimate", "low", "high"}: the adjusted Wald interval of Bonett and Price
    (2012, J. Educ. Behav. Stat. 37, 479), which keeps its coverage where a few answers differ, or
    none, and the bootstrap has nothing to draw from.
    """
    examples = len(first)
    better, worse = (int((a & ~b).sum()) for a, b in ((second, first), (first, second)))
    up, down = ((count + 1) / (examples + 2) for count in (better, worse))
    error = math.sqrt((up + down - (up - down) ** 2) / (examples + 2))
    spread = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return {
        "estimate": (better - worse) / examples,
        "low": up - down - spread,
        "high": up - down + spread,
    }


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


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise UserError(f"{name}: need a list of finite numbers, at least one: check the records")
    return values


def _aligned(*arrays: ArrayLike) -> list[np.ndarray]:
    aligned = [np.asarray(values) for values in arrays]
    sizes = [len(values) for values in aligned]
    if len(set(sizes)) > 1 or sizes[0] < 2:
        raise UserError(
            f"cannot compare arrays of {', '.join(map(str, sizes))} examples: give the same"
            " examples in the same order, at least 2"
        )
    return aligned
