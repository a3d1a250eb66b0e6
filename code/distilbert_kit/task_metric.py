"""The study's metrics for the `evaluate` library, without the hub.

    evaluate.load("code/distilbert_kit/task_metric.py", "cola").compute(
        predictions=[0, 1, 1], references=[0, 1, 0])

The second argument is a task's name; the result holds that task's metrics.
"""

import datasets
import evaluate

from distilbert_kit.metrics import compute_metrics
from distilbert_kit.tasks import get_task


class TaskMetric(evaluate.Metric):
    """The metrics of one task of the registry, from 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        task = get_task(self.config_name)
        value = datasets.Value("float64" if task.is_regression else "int64")
        return evaluate.MetricInfo(
            description=f"{task.name}: {', '.join(task.metrics)}",
            citation="",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        task = get_task(self.config_name)
        return compute_metrics(task.metrics, predictions, references, task.num_labels)
