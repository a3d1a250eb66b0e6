"""From a CSV to a small classifier: fine-tune a teacher, distil it into a student, quantise that.

    python code/distill_csv.py --csv news.csv --output news-models
    python code/distill_csv.py --csv mail.csv --text-column body --label-column spam --output mail
    python code/distill_csv.py --csv news.csv --output news-models --seeds 0 1 2 --random-start
    python code/predict.py --model news-models/student-int8 "a text of your own"

Rows are split 80/10/10 within each class; equal texts share a split. All models see the same rows.
By default a small file is read more often, until there are 100 updates: after few of them a student
that is cut from a teacher still guesses (more steps help BERT on few samples: arXiv 2006.05987).
A control student is trained in the same way, but without the teacher: the difference is the effect
of distillation on these data. With --random-start, one more student is distilled from random
weights: that difference is the effect of starting from teacher layers. All is measured on the test
split after reloading from --output, which holds the models of the first seed with their cards, the
predictions of all seeds and the record.
"""

import argparse
import math
from functools import partial
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point

import pandas as pd

from distilbert_kit.data.csv import sorted_labels, split_texts
from distilbert_kit.data.tasks import Task
from distilbert_kit.errors import UserError, one_line
from distilbert_kit.files import check_output_folder, locked, replacing_folder
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.models.hub_layout import read_config
from distilbert_kit.models.initialisation import LAYERS_HELP, choose_layers
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import FinetuneSettings, SoftTargets, read_seed
from distilbert_kit.study.csv_pipeline import (
    accuracies,
    add_csv_options,
    as_task,
    encode,
    make_models,
    most_frequent,
    read_csv_rows,
    results_table,
    rows_used,
    run_seeds,
)
from distilbert_kit.study.inputs import checkpoint_input, public_name
from distilbert_kit.study.model_card import write_model_card
from distilbert_kit.study.records import read_record, recording

MAX_LENGTH = 64  # tokens of a text, unless --max-length says otherwise
LEAST_EPOCHS, LEAST_UPDATES = 2, 100  # of every training, unless --epochs says otherwise


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    add_csv_options(parser)
    parser.add_argument("--teacher", default="minilm", help="folder or hub name (default: minilm)")
    parser.add_argument(
        "--layers", default="even", help=f"of the teacher: {LAYERS_HELP}; default: half, evenly"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        help=f"tokens (default: {MAX_LENGTH}, or as many as the teacher takes)",
    )
    parser.add_argument(
        "--epochs",
        type=float,
        help=f"default: {LEAST_EPOCHS}, or as many as make {LEAST_UPDATES} updates",
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="default: 1e-4")
    parser.add_argument("--batch-size", type=int, default=32, help="texts (default: 32)")
    parser.add_argument(
        "--temperature", type=float, default=2.0, help="of the soft targets (default: 2)"
    )
    parser.add_argument(
        "--soft-weight",
        type=float,
        default=0.5,
        help="0: learn from labels only, 1: from the teacher only (default: 0.5)",
    )
    parser.add_argument(
        "--seeds",
        type=read_seed,
        nargs="+",
        default=[0],
        help="the first also splits the rows (default: 0)",
    )
    parser.add_argument(
        "--random-start", action="store_true", help="add a student distilled from random weights"
    )
    arguments = parser.parse_args()
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError("--seeds: one of them is given twice; give each once")
    return arguments


def training_settings(arguments: argparse.Namespace) -> tuple[FinetuneSettings, SoftTargets]:
    """Settings of all trainings, and of the teaching.

    Without --epochs, `enough_epochs` follows, and without --max-length what the teacher takes.
    """
    names = ("learning_rate", "batch_size")
    targets = SoftTargets(temperature=arguments.temperature, soft_weight=arguments.soft_weight)
    settings = FinetuneSettings(
        **{name: getattr(arguments, name) for name in names},
        epochs=LEAST_EPOCHS if arguments.epochs is None else arguments.epochs,
        max_length=MAX_LENGTH if arguments.max_length is None else arguments.max_length,
        batch_tokens=4096,
        warmup_fraction=0.06,
        weight_decay=0.01,
    )
    return settings, targets


def enough_epochs(rows: int, batch_size: int) -> int:
    """How often `rows` are read for `LEAST_UPDATES`, and at least `LEAST_EPOCHS`."""
    return max(LEAST_EPOCHS, math.ceil(LEAST_UPDATES / math.ceil(rows / batch_size)))


def describe(splits: dict[str, pd.DataFrame], table: pd.DataFrame, task: Task) -> None:
    """Print rows by split and class."""
    if left_out := table.attrs["rows_left_out"]:
        print(f"left out, as text or label is missing: {left_out:,} rows")
    repeated = table["text"].duplicated().sum()
    clash = (table.groupby("text")["label"].nunique() > 1).sum()
    print(f"{len(table):,} rows, {repeated:,} repeat an earlier text and stay on its side", end="")
    print(f"; {clash:,} texts have several labels, mend them" if clash else "")
    names = {label: one_line(label) for label in task.labels[:20]}
    width = max(map(len, names.values()))
    for label, shown in names.items():
        counts = (f"{(part['label'] == label).sum():6,} {name}" for name, part in splits.items())
        print(f"  {shown:{width}} {' '.join(counts)}")


@entry_point
def main() -> None:
    arguments = parse_arguments()
    (settings, targets), output = training_settings(arguments), arguments.output
    check_output_folder(output, arguments.teacher, arguments.csv)
    # All at once: a run that is stopped leaves the models of the run before, and none of its own.
    with locked(output), replacing_folder(output) as made:
        print(run(arguments, settings, targets, made))


def run(
    arguments: argparse.Namespace, settings: FinetuneSettings, targets: SoftTargets, output: Path
) -> str:
    """Train, quantise, measure and record in an empty folder; returns the table of results."""
    table = read_csv_rows(arguments)
    labels, splits = sorted_labels(table["label"]), split_texts(table, arguments.seeds[0])
    task = as_task(arguments.csv, labels)
    describe(splits, table, task)
    left_out = table.attrs.pop("rows_left_out")
    if arguments.epochs is None:
        epochs = enough_epochs(len(splits["train"]), settings.batch_size)
        settings = settings.model_copy(update={"epochs": epochs})
        print(f"{epochs} epochs, at least {LEAST_UPDATES} updates (to change: --epochs)")
    teacher = resolve_checkpoint(arguments.teacher)
    shape, tokenizer = read_config(teacher).shape, get_tokenizer(arguments.teacher, teacher)
    length = shape.text_length(arguments.teacher, arguments.max_length, settings.max_length)
    settings = settings.with_length(length, tokenizer.num_special_tokens_to_add())
    layers = choose_layers(arguments.layers, shape.num_layers)
    print(f"student: teacher layers {', '.join(map(str, layers))}")
    tokenizer.model_max_length = settings.max_length  # saved: predict.py cuts texts as here
    datasets = encode(splits, labels, tokenizer, settings.max_length)
    truncated = {split: data.truncated for split, data in datasets.items()}
    if cut := sum(truncated.values()):
        print(f"{cut:,} texts are cut to {settings.max_length} tokens; --max-length reads more")
    used = settings.model_dump(mode="json") | targets.model_dump(mode="json") | table.attrs
    used |= {"teacher": public_name(arguments.teacher), "layers": layers}
    used |= {name: getattr(arguments, name) for name in ("drop_missing", "random_start")}
    with recording(
        output / "record.json",
        stage="csv",
        cell={"csv": arguments.csv.name, "seeds": arguments.seeds},
        scale="reduced",
        recipe="none",
        inputs=[checkpoint_input(arguments.teacher, teacher)],
        settings=used,
    ) as draft:
        for split, part in splits.items():
            draft.data.append(rows_used(task, split, part))
        make = partial(
            make_models,
            teacher,
            layers,
            datasets["train"],
            task,
            settings,
            targets,
            tokenizer,
            random_start=arguments.random_start,
        )
        scores, times, predictions = run_seeds(
            make, arguments.seeds, datasets, splits, task, output
        )
        draft.metrics = scores | {
            "truncated": truncated,
            "rows_left_out": left_out,
            "accuracy": accuracies(predictions),
            "most_frequent": most_frequent(splits["test"]),
        }
        draft.extra["milliseconds_per_text"] = times
        predictions.to_csv(output / "predictions.csv", index=False)
    record = read_record(output / "record.json")
    for name in scores:
        own = {"cell": record.cell | {"model": name}, "metrics": record.metrics[name]}
        write_model_card(output / name, record.model_copy(update=own), [arguments.teacher])
    return results_table(draft.metrics, times, labels)


if __name__ == "__main__":
    main()
