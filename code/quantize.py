"""Export a fine-tuned model to ONNX, quantise it to int8, reload both, and measure them beside it.

    python code/finetune.py --recipe quick --model undistilled --task sentiment --save
    python code/quantize.py --recipe quick --model undistilled --task sentiment
    python code/quantize.py --checkpoint my-model --task sst2 --output my-model-int8

Writes a folder with both graphs and the tokenizer (predict.py takes it as --model) and a record,
which of a --checkpoint is in the folder too: bytes, parameters, scores and their distance from
fp32, all after reloading. A layer whose
activations 8 bits are too coarse for, on some training rows of the task, stays in fp32. A folder
of your own is timed too, one text at a time; a recipe has the benchmark's stage `latency` for that.
"""

import argparse
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point, refuse_options

import numpy as np

from distilbert_kit.data.tasks import Task, get_task
from distilbert_kit.errors import UserError
from distilbert_kit.files import check_output_folder, locked, replacing_folder
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.models.hub_layout import read_config
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.serve.export import calibration_rows, write_onnx
from distilbert_kit.settings import TextSettings, read_seed
from distilbert_kit.study.cell import STAGE_VERSIONS
from distilbert_kit.study.cells import quantize_cell
from distilbert_kit.study.deployment import (
    latency_by_length,
    load_variants,
    score_variants,
    size_of_variants,
)
from distilbert_kit.study.inputs import given_provenance, open_recipe
from distilbert_kit.study.records import Draft, recording
from distilbert_kit.training.classification import load_task_split
from distilbert_kit.training.fine_tuning import fine_tuned


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--model", help="a model of the recipe")
    parser.add_argument("--task", required=True, help="a task of the registry")
    parser.add_argument("--seed", type=read_seed, default=0)
    parser.add_argument("--checkpoint", help="a fine-tuned folder, instead of a recipe's model")
    parser.add_argument("--output", type=Path, help="output folder with --checkpoint")
    arguments = parser.parse_args()
    if arguments.checkpoint:
        if not arguments.output:
            raise UserError("--checkpoint needs --output: name the folder of the quantised model")
        reason = "chooses a model of the recipe; --checkpoint is one already"
        refuse_options(parser, arguments, ("model", "seed"), reason)
    else:
        reason = "is for --checkpoint; a recipe's model has its own folder"
        refuse_options(parser, arguments, ("output",), reason)
        if not arguments.model:
            raise UserError("give --model, a model of the recipe, or --checkpoint and --output")
    return arguments


def quantise(checkpoint: Path, folder: Path, task: Task, settings: dict, draft: Draft) -> None:
    """Write the graphs to `folder`; fill the draft with what the reloaded ones are worth."""
    model, tokenizer = fine_tuned(checkpoint, task), get_tokenizer(checkpoint)
    texts = TextSettings(**{k: settings[k] for k in TextSettings.model_fields if k in settings})
    training, _, used = load_task_split(task, settings["train_split"], tokenizer, texts)
    draft.data.append(used)
    draft.metrics["in_fp32"] = write_onnx(model, folder, tokenizer, calibration_rows(training))
    variants = load_variants(model, folder)
    draft.metrics["size"] = size_of_variants(checkpoint, folder)
    for split in task.eval_splits:
        dataset, table, used = load_task_split(task, split, tokenizer, texts)
        references = np.asarray(table[task.label_column])
        draft.metrics[split] = score_variants(variants, dataset, references, task)
        draft.data.append(used)
    if "lengths" in settings:
        lengths = [n for n in settings["lengths"] if n <= model.config.max_length]
        draft.extra["latency"] = latency_by_length(variants, lengths, settings["length_repeats"])


def summary(metrics: dict, extra: dict, task: Task) -> str:
    """A table: one line for each variant."""
    latency = extra.get("latency", [])
    columns = [f"{name:>10}" for name in task.metrics] + [f"{row['length']:>7}" for row in latency]
    lines = [
        f"{'':12}{'MB':>8}{'million':>9}" + "".join(columns) + "   (ms by tokens)" * bool(latency)
    ]
    for name, size in metrics["size"].items():
        scores = (metrics[task.eval_splits[0]][name][metric] for metric in task.metrics)
        times = (row[f"{name}_milliseconds"] for row in latency)
        lines.append(
            f"{name:12}{size['bytes'] / 1e6:8.1f}{size['parameters'] / 1e6:9.2f}"
            + "".join(f"{100 * score:10.2f}" for score in scores)
            + "".join(f"{time:7.1f}" for time in times)
        )
    return "\n".join(lines)


@entry_point
def main() -> None:
    arguments = parse_arguments()
    recipe, task = open_recipe(arguments.recipe), get_task(arguments.task)
    if task.kind != "classification":
        raise UserError(f"--task {task.name}: no classification or regression; give one that is")
    if arguments.checkpoint:
        checkpoint, folder = resolve_checkpoint(arguments.checkpoint), arguments.output
        check_output_folder(folder, checkpoint)
        shape, speed = read_config(checkpoint).shape, recipe.require("speed")
        given = given_provenance(arguments.checkpoint, checkpoint, shape, task)
        settings = speed.model_dump(mode="json", include={"lengths", "length_repeats"})
        settings |= {
            "max_length": shape.text_length(arguments.checkpoint, None),
            "train_split": task.train_split,
        }
        with (
            locked(folder),
            replacing_folder(folder) as made,
            recording(
                made / "record.json",
                stage="quantize",
                stage_version=STAGE_VERSIONS["quantize"],
                settings=settings,
                **given,
            ) as draft,
        ):
            quantise(checkpoint, made, task, settings, draft)
    else:
        cell = quantize_cell(recipe, arguments.model, task.name, arguments.seed)
        (parent,) = cell.parents
        checkpoint, folder = parent.made, cell.folder
        cell.check_outputs()
        with recording(cell.record, **cell.provenance) as draft, replacing_folder(folder) as made:
            quantise(checkpoint, made, task, cell.settings, draft)
        cell.stamp_folder()
    print(summary(draft.metrics, draft.extra, task))
    print(folder)


if __name__ == "__main__":
    main()
