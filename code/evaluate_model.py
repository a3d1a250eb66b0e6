"""Evaluate a fine-tuned checkpoint (ours or transformers') on a task's dev set.

    python code/evaluate_model.py --checkpoint results/quick/models/teacher-sentiment-0 \\
        --task sentiment
    python code/evaluate_model.py --checkpoint some/hub-model --task squad --answers answers.json

Refuses a checkpoint whose head for the task is missing or has another number of labels, and
reorders labels by name where their order differs (MNLI's does between checkpoints). `--answers`
writes what SQuAD's official scorer reads: id -> answer text.
"""

import argparse
from pathlib import Path
from typing import get_args

from distilbert_kit.script import argument_parser, entry_point

import pandas as pd
from pydantic import ValidationError

from distilbert_kit.data.tasks import Task, get_task, is_embedded
from distilbert_kit.errors import UserError, first_problem
from distilbert_kit.files import check_output_beside, check_output_record, write_json
from distilbert_kit.models.checkpoints import get_tokenizer, resolve_checkpoint
from distilbert_kit.settings import Precision
from distilbert_kit.study.inputs import checkpoint_input, public_name
from distilbert_kit.study.records import recording
from distilbert_kit.study.runs import record_evaluations
from distilbert_kit.training.fine_tuning import KINDS, evaluate, fine_tuned
from distilbert_kit.training.loop import training_device


def predictions(record: Path, split: str) -> Path:
    """The file of the rows of a split, beside the record."""
    return record.with_suffix(f".{split}.parquet")


def check_outputs(arguments: argparse.Namespace, task: Task) -> None:
    """Raise UserError unless all files can be written, in the place of none or those of a run."""
    check_output_record(arguments.out)
    beside = [predictions(arguments.out, split) for split in task.eval_splits]
    if arguments.answers:
        if task.kind != "question_answering":
            raise UserError(f"--answers: {task.name} has none; give it with --task squad")
        beside.append(arguments.answers)
    for path in beside:
        check_output_beside(arguments.out, path)
    if len({path.resolve() for path in (arguments.out, *beside)}) <= len(beside):
        raise UserError(f"--answers {arguments.answers}: another output has that name; change one")


@entry_point
def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="folder or hub name")
    parser.add_argument("--task", required=True)
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument("--max-length", type=int, help="tokens (default: 512; windows: 384)")
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"), help="record")
    parser.add_argument("--answers", type=Path, help="file for the answers as JSON (squad only)")
    arguments = parser.parse_args()
    task = get_task(arguments.task)
    check_outputs(arguments, task)
    given = {} if arguments.max_length is None else {"max_length": arguments.max_length}
    try:
        texts = KINDS[task.kind].texts(**given)
    except ValidationError as error:
        raise UserError(f"--max-length: {first_problem(error, 'windows')}") from None
    settings = {"precision": arguments.precision} | texts.model_dump(mode="json")
    cell = {"checkpoint": public_name(arguments.checkpoint), "task": task.name}
    scale = "embedded" if is_embedded(task.dataset) else "reduced"
    provenance = {"stage": "evaluate", "cell": cell, "scale": scale, "recipe": "none"}
    inputs = [checkpoint_input(arguments.checkpoint, resolve_checkpoint(arguments.checkpoint))]
    with recording(arguments.out, **provenance, settings=settings, inputs=inputs) as draft:
        model = fine_tuned(arguments.checkpoint, task)
        evaluations = evaluate(
            model.to(training_device(arguments.precision)),
            task,
            get_tokenizer(arguments.checkpoint),
            texts,
            arguments.precision,
        )
        record_evaluations(draft, evaluations, lambda split: predictions(arguments.out, split))
        if arguments.answers:
            frame = pd.concat(found.frame for found in evaluations.values())
            write_json(arguments.answers, dict(zip(frame["id"], frame["prediction"], strict=True)))
            draft.wrote(arguments.answers)
    for split in task.eval_splits:
        shown = (f"{name} {100 * draft.metrics[split][name]:.1f}" for name in task.metrics)
        print(f"{task.name} {split}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
