"""Try a model of a recipe, with a learning rate, on training rows that are held out.

    python code/tune.py --recipe base --model teacher --task cola --learning-rate 5e-5

For recipes with the key `tuning`, where finetune.py takes for each model the rate with the best
mean score over the tasks (study/tuning.py), or `held_out`, which compares models at the recipe's
rate. The dev sets are not read. A training that diverges scores 0, as a model that tells nothing
apart does in Matthews' correlation: the trial is done, and its rate is not chosen.
"""

from distilbert_kit.script import argument_parser, entry_point

import numpy as np

from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import NonFiniteError, UserError
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.study.cells import checkpoint, held_out_cells, tuning_cells
from distilbert_kit.study.inputs import open_recipe
from distilbert_kit.study.records import recording
from distilbert_kit.training.classification import load_task_split, predict_logits, score
from distilbert_kit.training.fine_tuning import check_length, fine_tune


def held_out_rows(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the rows to train on, and of those held out; UserError without either."""
    order = np.random.default_rng(seed).permutation(count)
    kept = round(count * (1 - fraction))
    if not 0 < kept < count:
        raise UserError(f"held_out: {fraction} of {count} rows leaves none on one side")
    return np.sort(order[:kept]), np.sort(order[kept:])


@entry_point
def main() -> None:
    parser = argument_parser(__doc__, recipe="base")
    parser.add_argument("--model", required=True, help="a model of the recipe")
    parser.add_argument("--task", required=True, help="one of the tasks of its key")
    parser.add_argument("--learning-rate", required=True, type=float, help="one of its rates")
    arguments = parser.parse_args()
    recipe, task = open_recipe(arguments.recipe), get_task(arguments.task)
    wanted = {key: getattr(arguments, key) for key in ("model", "task", "learning_rate")}
    for cell in (*tuning_cells(recipe, arguments.model), *held_out_cells(recipe)):
        if cell.identity.items() >= wanted.items():
            break
    else:
        raise UserError(
            f"recipe {recipe.name} tries no {arguments.model} on {task.name} with "
            f"{arguments.learning_rate}: see its keys tuning and held_out"
        )
    start, seed = checkpoint(recipe, arguments.model), cell.identity["seed"]
    tokenizer = get_tokenizer(start)
    settings = recipe.finetune_for(task.name)
    settings = settings.model_copy(update={"learning_rate": arguments.learning_rate})
    check_length(start, settings, f"model {arguments.model}")
    with recording(cell.record, **cell.provenance) as draft:
        split = recipe.train_split(task.name)
        dataset, table, used = load_task_split(task, split, tokenizer, settings)
        draft.data.append(used)
        kept, held_out = held_out_rows(len(dataset), cell.settings["held_out"], seed)
        try:
            model, result = fine_tune(
                start, task, dataset.select(kept), settings, seed, **cell.resumable
            )
            logits = predict_logits(model, dataset.select(held_out), precision=settings.precision)
        except NonFiniteError as error:
            found, said = {"score": 0.0, "diverged": True}, str(error)
        else:
            found = score(logits, np.asarray(table[task.label_column])[held_out], task)
            found["score"] = found[task.primary]
            said = f"{task.primary} {100 * found['score']:.1f} on {len(held_out)} rows"
            draft.metrics |= result.metrics
            draft.extra |= result.speed
        draft.metrics["held_out"] = found | {"rows": len(held_out)}
    cell.drop_checkpoints()
    print(f"{cell.name}: {said}")


if __name__ == "__main__":
    main()
