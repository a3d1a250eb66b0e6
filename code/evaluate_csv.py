"""Score a classifier on a CSV of labelled texts: weights, or an int8 graph.

    python code/evaluate_csv.py --model news/student-int8 --csv newer.csv --output newer-scores

The model is one of distill_csv.py, or any fine-tuned classifier; its classes are matched by their
names. Texts are cut where predict.py cuts them. Writes a folder with the record and
`predictions.csv`, a row for each text.
"""

from pathlib import Path
from typing import cast

from distilbert_kit.script import argument_parser, entry_point

import numpy as np

from distilbert_kit.errors import UserError, one_line
from distilbert_kit.files import check_output_folder, locked, replacing_folder
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.serve.prediction import Classifier, find_task, load_predictor
from distilbert_kit.study.csv_pipeline import (
    add_csv_options,
    as_task,
    encode,
    most_frequent,
    read_csv_rows,
    rows_used,
    whose_f1,
)
from distilbert_kit.study.inputs import given_provenance
from distilbert_kit.study.records import recording
from distilbert_kit.training.classification import predict_logits, score


def load_classifier(folder: Path, name: str) -> Classifier:
    """The classifier of a folder; UserError for a model that gives no one class to a text."""
    if find_task(folder) == "text-classification":
        found = cast(Classifier, load_predictor(folder))
        if found.model.num_labels > 1 and not found.model.multi_label:
            return found
    raise UserError(f"{name}: gives a text no class, or several; give a classifier")


@entry_point
def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", required=True, help="folder or hub name")
    add_csv_options(parser)
    arguments = parser.parse_args()
    output = arguments.output
    check_output_folder(output, arguments.model, arguments.csv)
    table, folder = read_csv_rows(arguments), resolve_checkpoint(arguments.model)
    classifier = load_classifier(folder, arguments.model)
    task = as_task(arguments.csv, classifier.model.labels)
    if unknown := sorted(set(table["label"]) - set(task.labels)):
        raise UserError(
            f"{arguments.csv}: label {unknown[0]!r} is none of the model's: "
            f"{', '.join(task.labels[:10])}; rename it, or give another model"
        )
    settings = table.attrs | {"max_length": classifier.max_length}
    given = given_provenance(arguments.model, folder, classifier.model.config, task)
    rows = {"rows": table}
    with (
        locked(output),
        replacing_folder(output) as made,
        recording(made / "record.json", stage="evaluate", settings=settings, **given) as draft,
    ):
        dataset = encode(rows, task.labels, classifier.tokenizer, classifier.max_length)["rows"]
        logits = classifier.logits(predict_logits, dataset)
        draft.metrics = score(logits, np.asarray(dataset.labels), task) | dataset.counts
        draft.metrics["most_frequent"] = most_frequent(table)
        draft.data.append(rows_used(task, "rows", table))
        answers = table.assign(prediction=np.asarray(task.labels)[logits.argmax(axis=1)])
        answers.to_csv(made / "predictions.csv")
        draft.add_output(made / "predictions.csv")
    shown = ", ".join(f"{name} {100 * draft.metrics[name]:.2f}" for name in task.metrics)
    label, share = draft.metrics["most_frequent"].values()
    print(f"{len(table):,} texts: {shown}; F1 is {whose_f1(task.labels)}")
    print(f"{100 * share:.2f} % of them are {one_line(label)!r}")
    print(output)


if __name__ == "__main__":
    main()
