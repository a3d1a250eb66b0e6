"""Evaluate a model, fine-tuned on tasks of a recipe, on every task that has the same labels.

    python code/cross_evaluate.py --recipe study --model distilled

The recipe's key `cross_evaluation` names the models, the tasks, and what else they are tested on.
The record has metrics by training task, tested task and split. Each tested task uses its own dev
set and metrics; classes are matched by name.
"""

from distilbert_kit.script import argument_parser, entry_point

from tqdm.auto import tqdm

from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.study.cells import cross_evaluation_cell
from distilbert_kit.study.inputs import open_recipe
from distilbert_kit.study.records import recording
from distilbert_kit.training.fine_tuning import evaluate, fine_tuned
from distilbert_kit.training.loop import training_device
from distilbert_kit.training.precision import usable_precision


@entry_point
def main() -> None:
    parser = argument_parser(__doc__, recipe="study")
    parser.add_argument("--model", required=True, help="a model of the recipe's cross_evaluation")
    arguments = parser.parse_args()
    recipe = open_recipe(arguments.recipe)
    models = recipe.cross_evaluation.models if recipe.cross_evaluation else []
    if arguments.model not in models:
        raise UserError(
            f"{recipe.name}: cross_evaluation does not name {arguments.model!r}; "
            f"choose from {', '.join(models) or 'none'}, or add it to the recipe"
        )
    cell = cross_evaluation_cell(recipe, arguments.model)
    folders = {parent.identity["task"]: parent.made for parent in cell.parents}
    pairs = [
        (trained, get_task(name))
        for trained in folders
        for name in cell.settings["tested_on"]
        if get_task(name).shares_labels(get_task(trained))
    ]
    with recording(cell.record, **cell.provenance) as draft:
        used, precisions = {}, {}
        for trained, task in tqdm(pairs, desc=f"{cell.name}, tested", unit="pair"):
            texts = recipe.finetune_for(task.name)
            model = fine_tuned(folders[trained], task)
            model.to(training_device(texts.precision))
            found = evaluate(model, task, get_tokenizer(folders[trained]), texts, texts.precision)
            draft.metrics.setdefault(trained, {})[task.name] = {
                split: each.metrics for split, each in found.items()
            }
            used |= {each.used.name: each.used for each in found.values()}
            precisions[task.name] = usable_precision(texts.precision)
        draft.data = list(used.values())
        draft.extra["precision"] = precisions
    print(f"{cell.name}: {len(pairs)} pairs of tasks; {cell.record}")


if __name__ == "__main__":
    main()
