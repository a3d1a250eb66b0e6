"""Fine-tune a model of a recipe on a task, evaluate it on the task's dev set, write the record.

    python code/finetune.py --recipe quick --model teacher --task sentiment --seed 0
    python code/finetune.py --recipe study --model student --task sst2 --seed 1 --save

`--save` keeps the fine-tuned weights under results/<recipe>/models/, for evaluate_model.py.
"""

import argparse
import time

import torch

from distilbert_kit.data import LengthBatchSampler, create_dataloader, load_task_split
from distilbert_kit.errors import entry_point
from distilbert_kit.evaluation import predict_logits, save_predictions, score
from distilbert_kit.experiment import checkpoint, finetune_cell
from distilbert_kit.model import DistilBERTForSequenceClassification
from distilbert_kit.recipes import load_recipe
from distilbert_kit.records import recording
from distilbert_kit.tasks import get_task
from distilbert_kit.training import CLASSIFICATION, train
from distilbert_kit.weights import get_tokenizer


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="quick", help="name or file (default: quick)")
    parser.add_argument("--model", required=True, help="a model of the recipe")
    parser.add_argument("--task", required=True, help="a task of the registry")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="keep the fine-tuned model")
    return parser.parse_args()


@entry_point
def main() -> None:
    arguments = parse_arguments()
    recipe, task = load_recipe(arguments.recipe), get_task(arguments.task)
    cell = finetune_cell(recipe, arguments.model, task.name, arguments.seed)
    settings = recipe.finetune_for(task.name)
    tokenizer = get_tokenizer()
    with recording(cell.record, **cell.provenance) as draft:
        dataset, _, used = load_task_split(task, task.train_split, tokenizer, settings.max_length)
        torch.manual_seed(arguments.seed)  # the new head
        model = DistilBERTForSequenceClassification.from_pretrained(
            checkpoint(recipe, arguments.model), num_labels=task.num_labels, labels=task.labels
        )
        sampler = LengthBatchSampler(
            dataset.lengths, settings.batch_size, settings.batch_tokens, seed=arguments.seed
        )
        result = train(
            model,
            create_dataloader(dataset, sampler),
            CLASSIFICATION,
            settings,
            seed=arguments.seed,
            description=cell.name,
        )
        draft.data.append(used)
        result.describe(draft)
        draft.metrics["train_truncated"] = dataset.truncated
        for split in task.eval_splits:
            dataset, table, used = load_task_split(task, split, tokenizer, settings.max_length)
            started = time.perf_counter()
            logits = predict_logits(model, dataset, precision=settings.precision)
            seconds = time.perf_counter() - started
            draft.data.append(used)
            draft.metrics[split] = score(logits, table[task.label_column][:], task)
            draft.metrics[split]["truncated"] = dataset.truncated
            draft.extra[f"{split}_examples_per_second"] = round(len(dataset) / seconds, 1)
            save_predictions(cell.predictions(split), logits, table, task)
        if arguments.save:
            model.save_pretrained(cell.folder, tokenizer)
    if arguments.save:
        cell.stamp_folder()
    figures = ", ".join(
        f"{split} {name} {100 * draft.metrics[split][name]:.1f}"
        for split in task.eval_splits
        for name in task.metrics
    )
    print(f"{cell.name}: {figures}; record {cell.record.name}")


if __name__ == "__main__":
    main()
