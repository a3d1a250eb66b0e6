"""The task registry: columns, label order, metrics and splits of every task, in one place."""

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError


@dataclass(frozen=True)
class Task:
    """One task.

    `labels` are class names in the order of the data's label numbers (empty: regression, or
    question answering); `metrics` are reported, the first enters the macro-score. The paper
    does not say which component it used for MRPC, QQP and STS-B (transformers#2447).
    """

    name: str
    dataset: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    label_column: str = "label"
    train_split: str = "train"
    eval_splits: tuple[str, ...] = ("validation",)
    kind: Literal["classification", "question_answering"] = "classification"

    @property
    def title(self) -> str:
        """The name as the field writes it."""
        return _TITLES.get(self.name, self.name.upper())

    @property
    def primary(self) -> str:
        """The metric that enters the macro-score."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """Size of the classifier: the number of classes, 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number instead of a class."""
        return self.kind == "classification" and not self.labels

    def shares_labels(self, other: "Task") -> bool:
        """Whether a model of one task answers the other: the same classes, in any order."""
        return self.kind == other.kind and set(self.labels) == set(other.labels)


def is_embedded(dataset: str) -> bool:
    """Whether the kit makes the data set itself (`grammar`): there is no file to fetch."""
    return dataset.startswith("embedded/")


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_SENTIMENT = ("negative", "positive")
OF_CLASSES = ("accuracy", "precision", "recall", "f1")


def _tasks(*tasks: Task) -> dict[str, Task]:
    return {task.name: task for task in tasks}


TASKS = _tasks(
    # The embedded grammar (grammar.py): no file is needed.
    Task("sentiment", "embedded/sentiment", ("sentence",), _SENTIMENT, OF_CLASSES),
    # GLUE, arXiv 1804.07461; columns and label numbers as on the hub.
    Task(
        "cola",
        "glue/cola",
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews", "accuracy"),
    ),
    Task(
        "mnli",
        "glue/mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        eval_splits=("validation_matched", "validation_mismatched"),
    ),
    Task("mrpc", "glue/mrpc", _PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    Task("qnli", "glue/qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",)),
    Task(
        "qqp",
        "glue/qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
    ),
    Task("rte", "glue/rte", _PAIR, _ENTAILMENT, ("accuracy",)),
    Task("sst2", "glue/sst2", ("sentence",), _SENTIMENT, OF_CLASSES),
    Task("stsb", "glue/stsb", _PAIR, (), ("pearson", "spearman")),
    Task("wnli", "glue/wnli", _PAIR, _ENTAILMENT[::-1], ("accuracy",)),
    Task("imdb", "imdb", ("text",), _SENTIMENT, OF_CLASSES, eval_splits=("test",)),
    # SQuAD v1.1, arXiv 1606.05250; the paper's Table 2 has both metrics.
    Task(
        "squad",
        "squad",
        ("question", "context"),
        (),
        ("exact_match", "f1"),
        label_column="answers",
        kind="question_answering",
    ),
)

# Where it is not the name in capitals.
_TITLES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "stsb": "STS-B",
    "imdb": "IMDb",
    "squad": "SQuAD",
    "sentiment": "sentiment",
}

GLUE = tuple(name for name, task in TASKS.items() if task.dataset.startswith("glue/"))


def get_task(name: str) -> Task:
    """The task of this name; UserError that lists the names otherwise."""
    if name not in TASKS:
        raise UserError(f"no task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]
