"""Train a masked LM on the recipe's corpus: from scratch, or a head for a checkpoint without one.

    python code/pretrain.py --recipe quick --model teacher

A run that was killed goes on from its last checkpoint when the same command is given again.
"""

import argparse

import torch

from distilbert_kit.config import create_model_config
from distilbert_kit.distillation import MASKED_LM, train_on_corpus
from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.experiment import checkpoint, corpus_cell, model_cell
from distilbert_kit.model import DistilBERTForMaskedLM
from distilbert_kit.recipes import load_recipe
from distilbert_kit.records import recording
from distilbert_kit.weights import get_tokenizer


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--model", required=True, help="a model of the recipe with `pretrain`")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    cell = model_cell(recipe, arguments.model)
    spec = recipe.models[arguments.model].pretrain
    if spec is None:
        raise UserError(f"recipe {recipe.name}: {arguments.model!r} is no model to pretrain")
    with recording(cell.record, **cell.provenance) as draft:
        torch.manual_seed(recipe.corpus.seed)
        if spec.start:
            model = DistilBERTForMaskedLM.from_pretrained(checkpoint(recipe, spec.start))
        else:
            model = DistilBERTForMaskedLM(create_model_config(spec.shape))
        result, losses = train_on_corpus(
            model,
            corpus_cell(recipe).folder,
            recipe.corpus,
            recipe.pretrain,
            MASKED_LM,
            seed=recipe.corpus.seed,
            checkpoints=cell.checkpoints,
            description=cell.name,
        )
        result.describe(draft)
        draft.metrics["validation"] = losses
        model.save_pretrained(cell.folder, get_tokenizer())
    cell.stamp_folder()
    print(f"{cell.name}: validation {losses['before']} -> {losses['after']}")


if __name__ == "__main__":
    main()
