"""Evaluate a fine-tuned checkpoint (ours or transformers') on a task's dev set.

    python code/evaluate_model.py --checkpoint results/quick/models/teacher-sentiment-0 \\
        --task sentiment --output my-scores
    python code/evaluate_model.py --checkpoint some/hub-model --task squad --output my-squad

Refuses a checkpoint whose head for the task is missing or has another number of labels, and
reorders labels by name where their order differs (MNLI's does between checkpoints). Writes a folder
with the record and the predictions on each split; of questions also `answers.json`, which SQuAD's
official scorer reads: id -> answer text.
"""

from pathlib import Path
from typing import get_args

from distilbert_kit.script import argument_parser, entry_point

import pandas as pd
from pydantic import ValidationError

from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError, first_problem
from distilbert_kit.files import check_output_folder, locked, replacing_folder, write_json
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.models.hub_layout import read_config
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import Precision
from distilbert_kit.study.inputs import given_provenance
from distilbert_kit.study.records import recording
from distilbert_kit.study.runs import record_evaluations
from distilbert_kit.training.fine_tuning import KINDS, evaluate, fine_tuned
from distilbert_kit.training.loop import training_device
from distilbert_kit.training.precision import usable_precision


@entry_point
def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="folder or hub name")
    parser.add_argument("--task", required=True)
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument(
        "--max-length",
        type=int,
        help="tokens (default: 512, windows: 384, or as many as the model takes)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for scores and answers")
    arguments = parser.parse_args()
    task, output = get_task(arguments.task), arguments.output
    check_output_folder(output, arguments.checkpoint)
    limit = {} if arguments.max_length is None else {"max_length": arguments.max_length}
    try:
        texts = KINDS[task.kind].texts(**limit)
    except ValidationError as error:
        raise UserError(f"--max-length: {first_problem(error, 'windows')}") from None
    folder = resolve_checkpoint(arguments.checkpoint)
    shape, tokenizer = read_config(folder).shape, get_tokenizer(folder)
    length = shape.text_length(arguments.checkpoint, arguments.max_length, texts.max_length)
    texts = texts.with_length(length, tokenizer.num_special_tokens_to_add(pair=True))
    settings = {"precision": arguments.precision} | texts.model_dump(mode="json")
    given = given_provenance(arguments.checkpoint, folder, shape, task)
    with (
        locked(output),
        replacing_folder(output) as made,
        recording(made / "record.json", stage="evaluate", settings=settings, **given) as draft,
    ):
        draft.extra["precision"] = usable_precision(arguments.precision)
        model = fine_tuned(folder, task)
        evaluations = evaluate(
            model.to(training_device(arguments.precision)),
            task,
            tokenizer,
            texts,
            arguments.precision,
        )
        record_evaluations(draft, evaluations, lambda split: made / f"{split}.parquet")
        if task.kind == "question_answering":
            frame = pd.concat(found.frame for found in evaluations.values())
            answers = made / "answers.json"
            write_json(answers, dict(zip(frame["id"], frame["prediction"], strict=True)))
            draft.add_output(answers)
    for split in task.eval_splits:
        shown = (f"{name} {100 * draft.metrics[split][name]:.1f}" for name in task.metrics)
        print(f"{task.name} {split}: {', '.join(shown)}")
    print(output)


if __name__ == "__main__":
    main()
