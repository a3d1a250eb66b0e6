"""Evaluate a fine-tuned checkpoint (ours or transformers') on a task's dev set.

    python code/evaluate_model.py --checkpoint results/quick/models/teacher-sentiment-0 \\
        --task sentiment
    python code/evaluate_model.py --checkpoint some/hub-model --task sst2 --out evaluation.json

Refuses a checkpoint whose classification head is missing or has another number of labels, and
reorders labels by name where their order differs (MNLI's does between checkpoints).
"""

import argparse
from pathlib import Path

import numpy as np

from distilbert_kit.data import load_task_split
from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.evaluation import predict_logits, save_predictions, score
from distilbert_kit.model import DistilBERTForSequenceClassification
from distilbert_kit.records import recording
from distilbert_kit.tasks import Task, get_task
from distilbert_kit.weights import get_tokenizer


def label_order(model_labels: tuple[str, ...], task: Task, where: str) -> list[int]:
    """Columns of the model's logits in the task's label order, matched by name.

    Checkpoints without names (LABEL_0 …) are taken in the task's own order. Raises UserError
    when the number of labels or their names do not fit.
    """
    if len(model_labels) != task.num_labels:
        raise UserError(
            f"{where}: its head has {len(model_labels)} labels, {task.name} has "
            f"{task.num_labels}; give a checkpoint fine-tuned on {task.name}"
        )
    names = [label.lower().replace("-", "_").replace(" ", "_") for label in model_labels]
    if task.is_regression or all(name.startswith("label_") for name in names):
        return list(range(task.num_labels))
    if set(names) != set(task.labels):
        raise UserError(
            f"{where}: its labels are {', '.join(model_labels)}, those of {task.name} are "
            f"{', '.join(task.labels)}; rename them in its config.json"
        )
    return [names.index(label) for label in task.labels]


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="folder or hub name")
    parser.add_argument("--task", required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"), help="record")
    arguments = parser.parse_args()
    task = get_task(arguments.task)
    settings = {"precision": arguments.precision, "max_length": arguments.max_length}
    cell = {"checkpoint": Path(arguments.checkpoint).name, "task": task.name}
    scale = "embedded" if task.dataset.startswith("embedded/") else "reduced"
    provenance = {"stage": "evaluate", "cell": cell, "scale": scale, "recipe": "none"}
    with recording(arguments.out, **provenance, settings=settings) as draft:
        model = DistilBERTForSequenceClassification.from_pretrained(
            arguments.checkpoint, require_head=True
        )
        order = label_order(model.labels, task, arguments.checkpoint)
        tokenizer = get_tokenizer(arguments.checkpoint)
        for split in task.eval_splits:
            dataset, table, used = load_task_split(task, split, tokenizer, arguments.max_length)
            logits = predict_logits(model, dataset, precision=arguments.precision)[:, order]
            draft.data.append(used)
            draft.metrics[split] = score(logits, np.asarray(table[task.label_column]), task)
            save_predictions(arguments.out.with_suffix(f".{split}.parquet"), logits, table, task)
            shown = (f"{name} {100 * draft.metrics[split][name]:.1f}" for name in task.metrics)
            print(f"{task.name} {split}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
