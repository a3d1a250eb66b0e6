"""Train a masked LM on the recipe's corpus: from scratch, or a head for a checkpoint without one.

    python code/pretrain.py --recipe my-recipe.yaml --model teacher

With `pretrain: {start: …, train: head}` the head alone is trained, on a frozen body.

To resume a killed run from its last checkpoint, give the same command again.
"""

from functools import partial

from distilbert_kit.script import argument_parser, entry_point

import torch

from distilbert_kit.errors import UserError
from distilbert_kit.models.checkpoints import has_masked_lm_head
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.study.cells import checkpoint, model_cell
from distilbert_kit.study.inputs import open_recipe, pinned_weights
from distilbert_kit.study.runs import train_cell
from distilbert_kit.training.objectives import MASKED_LM


@partial(entry_point, parallel=True)
def main() -> None:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--model", required=True, help="a model of the recipe with `pretrain`")
    arguments = parser.parse_args()
    recipe = open_recipe(arguments.recipe)
    cell = model_cell(recipe, arguments.model)
    spec = recipe.models[arguments.model].pretrain
    if spec is None:
        raise UserError(f"recipe {recipe.name}: {arguments.model!r} is no model to pretrain")
    torch.manual_seed(recipe.corpus.seed)
    if spec.start:
        source = checkpoint(recipe, spec.start)
        if spec.train == "head" and has_masked_lm_head(source):
            raise UserError(
                f"recipe {recipe.name}: {spec.start} has a masked-LM head already, so train: head "
                "would replace it; use the model as it is, or train: all"
            )
        model = DistilBERTForMaskedLM.from_pretrained(source)
        if spec.train == "head":
            model.freeze_body()
    else:
        model = DistilBERTForMaskedLM(create_model_config(spec.shape))
    tokenizer = get_tokenizer(pinned_weights(recipe, recipe.tokenizer_of(arguments.model)))
    train_cell(cell, model, tokenizer, recipe.pretrain, MASKED_LM)


if __name__ == "__main__":
    main()
