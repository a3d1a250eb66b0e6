"""Distil a student from a teacher with the triple loss of arXiv 1910.01108.

    python code/distill.py --recipe my-recipe.yaml --model distilled
    torchrun --nproc-per-node 8 code/distill.py --recipe my-recipe.yaml --model distilled
    python code/distill.py --recipe quick --model distilled --teacher my-bert --layers 0,6,11

With `--teacher`, any BERT with a masked-LM head teaches instead of the recipe's, and the student is
cut from its layers (`--layers`, as extract_student.py); loss, corpus and settings stay those of the
model of the recipe. The result is results/<recipe>/models/<model>-from-<teacher>; with other layers
than a result that is there, a hash is added to its name.

Processes share the `accumulation` micro-batches of an update: the training is the same on any
number of them. To resume a killed run from its last checkpoint, give the same command again.
"""

import argparse
from functools import partial

from distilbert_kit.script import argument_parser, entry_point

import torch

from distilbert_kit.errors import UserError
from distilbert_kit.models.checkpoints import model_sha256, resolve_checkpoint
from distilbert_kit.models.initialisation import LAYERS_HELP, choose_layers, extract_student
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.models.vocabulary import check_same_vocabulary
from distilbert_kit.settings import read_seed
from distilbert_kit.study.cells import checkpoint, distilled_from, model_cell
from distilbert_kit.study.inputs import open_recipe
from distilbert_kit.study.runs import train_cell


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--model", required=True, help="a model of the recipe with `distill`")
    parser.add_argument(
        "--seed", type=read_seed, default=0, help="of a model with `each_seed`: the one to make"
    )
    parser.add_argument("--teacher", help="folder or hub name, instead of the recipe's teacher")
    parser.add_argument("--layers", help=f"of --teacher: {LAYERS_HELP}; default: half, evenly")
    arguments = parser.parse_args()
    if arguments.layers and not arguments.teacher:
        raise UserError("--layers needs --teacher: a recipe's student has its layers already")
    return arguments


@partial(entry_point, parallel=True)
def main() -> None:
    arguments = parse_arguments()
    recipe = open_recipe(arguments.recipe)
    cell = model_cell(recipe, arguments.model, arguments.seed)
    spec = recipe.models[arguments.model].distill
    if spec is None:
        raise UserError(f"recipe {recipe.name}: {arguments.model!r} is no model to distil")
    if arguments.seed and not spec.each_seed:
        raise UserError(f"recipe {recipe.name}: {arguments.model!r} is made once: leave out --seed")
    read = DistilBERTForMaskedLM.from_pretrained
    torch.manual_seed(cell.settings["corpus"]["seed"])  # a student's head, where its start has none
    source = arguments.teacher or checkpoint(recipe, spec.teacher, arguments.seed)
    folder = resolve_checkpoint(source)  # once: a name on the hub may stand for other weights later
    # A teacher without a trained head would teach noise.
    teacher, tokenizer = read(folder, require_head=True), get_tokenizer(source, folder)
    if arguments.teacher:
        layers = choose_layers(arguments.layers or "even", teacher.config.num_layers)
        student = extract_student(teacher, layers)
        cell = distilled_from(cell, arguments.teacher, model_sha256(folder), layers)
    else:
        start = checkpoint(recipe, spec.student, arguments.seed)
        check_same_vocabulary(tokenizer, get_tokenizer(start), arguments.model)
        student = read(start)
    if spec.freeze_positions:
        student.encoder.embeddings.position_embeddings.requires_grad_(False)
    settings = recipe.distill_for(arguments.model)
    train_cell(cell, student, tokenizer, settings, spec.loss, teacher)


if __name__ == "__main__":
    main()
