"""The study's metrics for the `evaluate` library, without the hub.

    evaluate.load("code/distilbert_kit/study/task_metric.py", "cola").compute(
        predictions=[0, 1, 1], references=[0, 1, 0])

The second argument is a task's name; the result holds that task's metrics. Predictions of a
question-answering task are texts, its references lists of right answers.
"""

import datasets
import evaluate
import numpy as np

from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.metrics import answer_scores, compute_metrics


class TaskMetric(evaluate.Metric):
    """The metrics of one task of the registry, from 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        task = get_task(self.config_name)
        value = datasets.Value("float64" if task.is_regression else "int64")
        features = {"predictions": value, "references": value}
        if task.kind == "question_answering":
            text = datasets.Value("string")
            features = {"predictions": text, "references": datasets.List(text)}
        return evaluate.MetricInfo(
            description=f"{task.name}: {', '.join(task.metrics)}",
            citation="",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        task = get_task(self.config_name)
        if task.kind == "question_answering":
            if not references:
                raise UserError("no answers to score: check that the split is not empty")
            scores = list(map(answer_scores, predictions, references))
            return dict(zip(task.metrics, np.mean(scores, axis=0).tolist(), strict=True))
        return compute_metrics(task.metrics, predictions, references, task.num_labels)
