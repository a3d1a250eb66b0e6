"""Distil a student from a teacher with the triple loss of arXiv 1910.01108.

    python code/distill.py --recipe my-recipe.yaml --model distilled
    torchrun --nproc-per-node 8 code/distill.py --recipe my-recipe.yaml --model distilled

A run that was killed goes on from its last checkpoint when the same command is given again.
"""

import argparse

from distilbert_kit.distillation import train_cell
from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.experiment import checkpoint, model_cell
from distilbert_kit.model import DistilBERTForMaskedLM
from distilbert_kit.recipes import load_recipe


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--model", required=True, help="a model of the recipe with `distill`")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    cell = model_cell(recipe, arguments.model)
    spec = recipe.models[arguments.model].distill
    if spec is None:
        raise UserError(f"recipe {recipe.name}: {arguments.model!r} is no model to distil")
    read = DistilBERTForMaskedLM.from_pretrained
    # A teacher without a trained head would teach noise.
    teacher = read(checkpoint(recipe, spec.teacher), require_head=True)
    student = read(checkpoint(recipe, spec.student))
    train_cell(cell, student, recipe.distill_for(arguments.model), spec.loss, teacher)


if __name__ == "__main__":
    main()
