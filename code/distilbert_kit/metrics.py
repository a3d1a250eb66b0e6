"""Task metrics, calibration, teacher-student agreement and SQuAD scores, all from 0 to 1.

Correlations run from -1 to 1. Undefined values (constant predictions, a class that nobody
predicts) are 0.0, as in the GLUE evaluation: a collapsed model scores zero, it does not break
the table.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy  # its packages are loaded at first use; scikit-learn, a second, in the functions below
from numpy.typing import ArrayLike

from .errors import UserError

METRICS = ("accuracy", "f1", "precision", "recall", "matthews", "pearson", "spearman")
_CORRELATIONS = ("pearson", "spearman")


def compute_metrics(
    names: Iterable[str], predictions: ArrayLike, references: ArrayLike, num_labels: int = 2
) -> dict[str, float]:
    """The named metrics (see `METRICS`) of predictions [N] against references [N].

    With two labels precision, recall and F1 are those of class 1, as in GLUE (arXiv 1804.07461);
    with more they are macro-averages over the classes that occur.
    Raises UserError for an unknown name, empty or unequal inputs, values that are not finite, and
    class numbers outside 0 … num_labels - 1 (GLUE's test splits carry -1).
    """
    names = tuple(names)
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    predictions, references = _pairs(predictions, references)
    if any(name not in _CORRELATIONS for name in names):
        _check_classes(num_labels, predictions, references)
    average = "binary" if num_labels == 2 else "macro"
    return {name: _metric(name, predictions, references, average) for name in names}


def _metric(name: str, predictions: np.ndarray, references: np.ndarray, average: str) -> float:
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    if name == "accuracy":
        return float(accuracy_score(references, predictions))
    if name in _CORRELATIONS:
        return float(_correlation(predictions, references, ranks=name == "spearman"))
    if name == "matthews":
        with warnings.catch_warnings():  # one single class on both sides: 0.0 is what we want
            warnings.simplefilter("ignore", UserWarning)
            return float(matthews_corrcoef(references, predictions))
    return compute_precision_recall_f1(predictions, references, average)[name]


def _correlation(x: np.ndarray, y: np.ndarray, ranks: bool, axis: int = -1) -> np.ndarray:
    """Pearson's (or, over ranks, Spearman's) correlation along an axis; 0 where undefined."""
    if x.shape[axis] < 2:
        return np.zeros(np.delete(x.shape, axis))
    x, y = (scipy.stats.rankdata(v, axis=axis) if ranks else v.astype(np.float64) for v in (x, y))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's constant-input warnings
        found = scipy.stats.pearsonr(x, y, axis=axis).statistic  # pyright: ignore
        return np.nan_to_num(found)


def score_function(name: str, num_labels: int = 2) -> Callable[..., np.ndarray | float]:
    """The metric `name` as a function of (predictions, references), for the bootstrap.

    Where possible it takes `axis` and scores all resamples [B, N] in one call: 1,000 calls of
    scikit-learn take seconds, one vectorised call milliseconds. Inputs are not checked.
    """

    def accuracy(p: np.ndarray, r: np.ndarray, axis: int = -1) -> np.ndarray:
        return (p == r).mean(axis=axis)

    def f1(p: np.ndarray, r: np.ndarray, axis: int = -1) -> np.ndarray:
        positives = (p == 1).sum(axis=axis) + (r == 1).sum(axis=axis)
        return 2 * ((p == 1) & (r == 1)).sum(axis=axis) / np.maximum(positives, 1)

    def correlation(p: np.ndarray, r: np.ndarray, axis: int = -1) -> np.ndarray:
        return _correlation(p, r, name == "spearman", axis)

    if name == "accuracy":
        return accuracy
    if name == "f1" and num_labels == 2:
        return f1
    # With two classes Matthews' coefficient is the Pearson correlation of the class numbers.
    if name in _CORRELATIONS or (name == "matthews" and num_labels == 2):
        return correlation
    return lambda p, r: compute_metrics((name,), p, r, num_labels)[name]


def compute_precision_recall_f1(
    predictions: ArrayLike, references: ArrayLike, average: str = "binary"
) -> dict[str, float]:
    """Precision, recall and F1 [N] -> {"precision", "recall", "f1"}.

    `average`: "binary" (class 1 is the positive one) or "macro" (mean over the classes that occur).
    Raises UserError for empty or unequal inputs, and for a third class under "binary".
    """
    from sklearn.metrics import precision_recall_fscore_support

    predictions, references = _pairs(predictions, references)
    if average == "binary":
        _check_classes(2, predictions, references)
    values = precision_recall_fscore_support(
        references,
        predictions,
        average=average,
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    return dict(zip(("precision", "recall", "f1"), map(float, values[:3])))


def compute_confusion_matrix(
    predictions: ArrayLike, references: ArrayLike, num_labels: int
) -> list[list[int]]:
    """Counts [num_labels][num_labels]: rows are references, columns predictions."""
    from sklearn.metrics import confusion_matrix

    predictions, references = _pairs(predictions, references)
    _check_classes(num_labels, predictions, references)
    return confusion_matrix(references, predictions, labels=range(num_labels)).tolist()


def expected_calibration_error(
    probabilities: ArrayLike, references: ArrayLike, bins: int = 15
) -> dict:
    """Calibration of probabilities [N, C] (arXiv 1706.04599, eq. 3).

    Returns {"expected_calibration_error", "bins": [{"lower", "upper", "count", "confidence",
    "accuracy"}, …]}: bins of equal width, closed on the right; mean confidence and accuracy are
    None in an empty bin. Raises UserError if the rows are not probabilities.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or not (
        (probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)
    ):
        raise UserError("calibration needs probabilities [N, C] that sum to 1: apply softmax first")
    confidence = probabilities.max(axis=1).clip(max=1.0) if len(probabilities) else np.empty(0)
    predictions, references = _pairs(probabilities.argmax(axis=1), references)
    _check_classes(probabilities.shape[1], references)
    edges = np.linspace(0, 1, bins + 1)
    where = np.searchsorted(edges[1:-1], confidence)
    counts = np.bincount(where, minlength=bins)
    sums = [
        np.bincount(where, weights=values, minlength=bins)
        for values in (confidence, predictions == references)
    ]
    rows = [
        {
            "lower": float(edges[i]),
            "upper": float(edges[i + 1]),
            "count": int(count),
            "confidence": float(sums[0][i] / count) if count else None,
            "accuracy": float(sums[1][i] / count) if count else None,
        }
        for i, count in enumerate(counts)
    ]
    error = float(np.abs(sums[0] - sums[1]).sum() / len(confidence))
    return {"expected_calibration_error": error, "bins": rows}


def agreement(teacher_logits: ArrayLike, student_logits: ArrayLike) -> dict[str, float]:
    """How closely a student follows its teacher, both logits [N, C].

    Returns {"agreement": share of equal argmax, "kl": mean KL(teacher‖student) per example in
    nats}. Raises UserError for unequal shapes, no rows, or values that are not finite.
    """
    teacher, student = (
        np.asarray(logits, dtype=np.float64) for logits in (teacher_logits, student_logits)
    )
    if teacher.shape != student.shape or teacher.ndim != 2 or not teacher.size:
        raise UserError(
            f"agreement: teacher logits {teacher.shape} and student logits {student.shape}"
            " differ or are empty: predict the same rows with both"
        )
    if not (np.isfinite(teacher).all() and np.isfinite(student).all()):
        raise UserError("agreement: some logits are not finite: check the training run")
    log_t, log_s = (scipy.special.log_softmax(logits, axis=1) for logits in (teacher, student))
    divergence = (np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean()
    return {
        "agreement": float((teacher.argmax(axis=1) == student.argmax(axis=1)).mean()),
        "kl": max(float(divergence), 0.0),  # rounding may leave -1e-17
    }


def four_way_split(teacher_correct: ArrayLike, student_correct: ArrayLike) -> dict[str, int]:
    """Examples that both, only the teacher, only the student, or neither got right; inputs [N]."""
    teacher, student = (v.astype(bool) for v in _pairs(teacher_correct, student_correct))
    return {
        "both": int((teacher & student).sum()),
        "only_teacher": int((teacher & ~student).sum()),
        "only_student": int((~teacher & student).sum()),
        "neither": int((~teacher & ~student).sum()),
    }


def normalize_answer(text: str) -> str:
    """SQuAD v1.1: lower case, no ASCII punctuation, no articles, single spaces (in this order)."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_scores(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and token F1 of one answer (SQuAD v1.1, arXiv 1606.05250, section 6.1).

    Each is 0 to 1, the maximum over the gold answers; UserError if there are none. F1 is 0 when no
    token is shared, also for two empty texts: v1.1 has no unanswerable questions.
    """
    if not golds:
        raise UserError("a question has no gold answer: use a SQuAD v1.1 split")
    answer = normalize_answer(prediction)
    golds = [normalize_answer(gold) for gold in golds]
    return float(answer in golds), max(_token_f1(answer.split(), gold.split()) for gold in golds)


def _token_f1(prediction: list[str], gold: list[str]) -> float:
    shared = (Counter(prediction) & Counter(gold)).total()
    return 2 * shared / (len(prediction) + len(gold)) if shared else 0.0


def _pairs(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays [N]; UserError if they are empty, unequal or not finite."""
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape or predictions.ndim != 1:
        raise UserError(
            f"predictions {predictions.shape} and references {references.shape} do not pair up:"
            " give one value per example"
        )
    if not len(references):
        raise UserError("no examples to score: check that the split is not empty")
    for name, values in (("prediction", predictions), ("reference", references)):
        if not np.isfinite(values).all():
            raise UserError(f"a {name} is not finite: check the training run and the data")
    return predictions, references


def _check_classes(num_labels: int, *arrays: np.ndarray) -> None:
    for values in arrays:
        if not np.isin(values, np.arange(num_labels)).all():
            odd = values[~np.isin(values, np.arange(num_labels))][0]
            raise UserError(
                f"class {odd} is outside 0 … {num_labels - 1}: score class numbers on a split"
                " with labels"
            )
