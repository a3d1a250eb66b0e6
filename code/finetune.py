"""Fine-tune a model of a recipe on a task, evaluate it on the task's dev set, write the record.

    python code/finetune.py --recipe quick --model teacher --task sentiment --seed 0
    python code/finetune.py --recipe study --model distilled --task squad --seed 1 --save
    python code/finetune.py --recipe quick --model undistilled --task sentiment --teacher FOLDER

`--save` keeps the fine-tuned weights under results/<recipe>/models/, for evaluate_model.py. A model
of the recipe with `task_distill` learns from its teacher, already fine-tuned on the task. With
`--teacher`, any model learns from a fine-tuned one. The loss: soft_weight x the distance to the
teacher's logits, softened by the temperature, + (1 - soft_weight) x the usual loss.
"""

import argparse
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point

from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.models.checkpoints import model_sha256, resolve_checkpoint
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import SoftTargets, read_seed
from distilbert_kit.study.cell import Cell
from distilbert_kit.study.cells import (
    checkpoint,
    finetune_cell,
    teacher_cell,
    with_given_teacher,
)
from distilbert_kit.study.inputs import open_recipe
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import recording
from distilbert_kit.study.runs import record_evaluations
from distilbert_kit.study.tuning import tuned_settings
from distilbert_kit.training.fine_tuning import (
    KINDS,
    check_length,
    evaluate,
    fine_tune,
    teacher_logits,
)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--model", required=True, help="a model of the recipe")
    parser.add_argument("--task", required=True, help="a task of the registry")
    parser.add_argument("--seed", type=read_seed, default=0)
    parser.add_argument("--save", action="store_true", help="keep the fine-tuned model")
    parser.add_argument("--teacher", help="a fine-tuned teacher: folder or hub name")
    parser.add_argument("--temperature", type=float, help="with --teacher (default: 2)")
    parser.add_argument("--soft-weight", type=float, help="with --teacher (default: 0.5)")
    return parser.parse_args()


def find_teacher(
    recipe: Recipe, cell: Cell, arguments: argparse.Namespace
) -> tuple[Cell, SoftTargets | None, str | Path | None]:
    """The cell to run, how it is taught, and by what; a teacher of the command line renames it."""
    spec = recipe.models[arguments.model].task_distill
    options = {"temperature": arguments.temperature, "soft_weight": arguments.soft_weight}
    given = {name: value for name, value in options.items() if value is not None}
    if arguments.teacher is None:
        if given:
            raise UserError("--temperature and --soft-weight need --teacher: name a folder")
        taught_by = teacher_cell(recipe, arguments.model, arguments.task)
        return cell, spec, taught_by and taught_by.made
    if spec:
        raise UserError(f"{arguments.model} has a teacher in the recipe: leave out --teacher")
    targets = SoftTargets(**given)
    teacher = resolve_checkpoint(arguments.teacher)
    taught = {"task_distill": targets.model_dump(mode="json")}
    renamed = with_given_teacher(
        cell, "taught-by", arguments.teacher, model_sha256(teacher), taught
    )
    return renamed, targets, teacher


@entry_point
def main() -> None:
    arguments = parse_arguments()
    recipe, task = open_recipe(arguments.recipe), get_task(arguments.task)
    cell = finetune_cell(recipe, arguments.model, task.name, arguments.seed)
    settings, kind = tuned_settings(recipe, arguments.model, task.name), KINDS[task.kind]
    cell, targets, teacher = find_teacher(recipe, cell, arguments)
    start = checkpoint(recipe, arguments.model, arguments.seed)
    tokenizer = get_tokenizer(start)
    check_length(start, settings, f"model {arguments.model}")
    with recording(cell.record, **cell.provenance) as draft:
        cell.check_outputs(arguments.save)
        split = recipe.train_split(task.name)
        dataset, _, used = kind.load(task, split, tokenizer, settings)
        if targets:
            dataset.teacher_logits = teacher_logits(
                teacher, task, dataset, tokenizer, settings.precision
            )
        model, result = fine_tune(
            start, task, dataset, settings, arguments.seed, targets, **cell.resumable
        )
        draft.data.append(used)
        draft.metrics |= result.metrics
        if recipe.tuning:
            draft.metrics["learning_rate"] = settings.learning_rate
        draft.extra |= result.speed
        draft.metrics |= {f"train_{name}": count for name, count in dataset.counts.items()}
        evaluations = evaluate(model, task, tokenizer, settings, settings.precision)
        record_evaluations(draft, evaluations, cell.predictions)
        if arguments.save:
            model.save_pretrained(cell.folder, tokenizer)
    if arguments.save:
        cell.stamp_folder()
    cell.drop_checkpoints()
    figures = ", ".join(
        f"{split} {name} {100 * draft.metrics[split][name]:.1f}"
        for split in task.eval_splits
        for name in task.metrics
    )
    print(f"{cell.name}: {figures}; {cell.record}")


if __name__ == "__main__":
    main()
