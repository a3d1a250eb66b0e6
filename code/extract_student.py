"""Cut a student out of a teacher's layers, without training.

    python code/extract_student.py --recipe quick --model undistilled
    python code/extract_student.py --teacher bert-base-uncased --layers released --count 6 \\
        --output student/

Prints what is copied. Layer strategies: released (0, 2, 4, 7, 9, 11 of 12), even, first, last,
random; or how many, evenly, as 6; or which, as 0,2,4 (one alone: 6,).
"""

import argparse
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point, refuse_options

import torch

from distilbert_kit.errors import UserError
from distilbert_kit.files import check_output_folder
from distilbert_kit.models.checkpoints import has_masked_lm_head, resolve_checkpoint
from distilbert_kit.models.initialisation import LAYERS_HELP, choose_layers, extract_student
from distilbert_kit.models.model import DistilBERTForMaskedLM, count_parameters
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import read_seed
from distilbert_kit.study.cells import checkpoint, model_cell
from distilbert_kit.study.inputs import open_recipe
from distilbert_kit.study.records import recording
from distilbert_kit.study.specs import Extract


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--model", help="a model of the recipe that has `extract`")
    parser.add_argument("--teacher", help="folder, hub name or minilm, instead of a recipe")
    parser.add_argument(
        "--layers", default="even", help=f"of --teacher: {LAYERS_HELP}; default: half, evenly"
    )
    parser.add_argument("--count", type=int, help="number of layers for a strategy")
    parser.add_argument("--no-vocabulary-transform", action="store_true")
    parser.add_argument("--seed", type=read_seed, default=0, help="of random weights or layers")
    parser.add_argument("--output", type=Path, help="output folder with --teacher")
    arguments = parser.parse_args()
    if arguments.teacher is None:
        own = ("layers", "count", "no_vocabulary_transform", "output")
        reason = "needs --teacher; the recipe itself defines its models"
        refuse_options(parser, arguments, own, reason)
    else:
        refuse_options(
            parser,
            arguments,
            ("model", "recipe"),
            "is of a recipe's model; --teacher makes another",
        )
    return arguments


def _describe(student: DistilBERTForMaskedLM, spec: Extract, has_head: bool) -> dict:
    """Print and return what was copied; `has_head`: whether the teacher has a masked-LM head."""
    parts = ["word and position embeddings", "their norm", "blocks of these layers"]
    if student.config.model_type == "mpnet":
        parts.append("relative-position bias")
    if has_head:
        parts.append("decoder bias")
    if has_head and spec.vocabulary_transform:
        parts.append("vocabulary transform")
    copied = "nothing" if spec.random else ", ".join(parts)
    print(f"student of {count_parameters(student):,} parameters from teacher layers {spec.layers}")
    print(f"copied: {copied}")
    if not has_head:
        print("drawn at random: the masked-LM head, which the teacher lacks")
    return {"parameters": count_parameters(student), "copied": copied}


def _from_teacher(arguments: argparse.Namespace) -> None:
    if arguments.output is None:
        raise UserError("--teacher needs --output: name the student's folder")
    check_output_folder(arguments.output, arguments.teacher)
    torch.manual_seed(arguments.seed)
    folder = resolve_checkpoint(arguments.teacher)
    teacher = DistilBERTForMaskedLM.from_pretrained(folder)
    depth = teacher.config.num_layers
    layers = choose_layers(arguments.layers, depth, arguments.count, arguments.seed)
    spec = Extract(
        teacher=arguments.teacher,
        layers=layers,
        vocabulary_transform=not arguments.no_vocabulary_transform,
    )
    student = extract_student(teacher, spec.layers, spec.vocabulary_transform)
    _describe(student, spec, has_masked_lm_head(folder))
    student.save_pretrained(arguments.output, get_tokenizer(arguments.teacher, folder))


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if arguments.teacher:
        _from_teacher(arguments)
        return
    recipe = open_recipe(arguments.recipe)
    if arguments.model is None:
        raise UserError("give --model, a model of the recipe, or --teacher and --output")
    cell = model_cell(recipe, arguments.model, arguments.seed)
    spec = recipe.models[arguments.model].extract
    if spec is None:
        raise UserError(f"recipe {recipe.name}: {arguments.model!r} is no model to extract")
    if arguments.seed and not spec.each_seed:
        raise UserError(f"recipe {recipe.name}: {arguments.model!r} is made once: leave out --seed")
    with recording(cell.record, **cell.provenance) as draft:
        cell.check_outputs()
        torch.manual_seed(arguments.seed)
        source = checkpoint(recipe, spec.teacher, arguments.seed)
        teacher = DistilBERTForMaskedLM.from_pretrained(source)
        student = extract_student(teacher, spec.layers, spec.vocabulary_transform)
        if spec.random:
            student = DistilBERTForMaskedLM(student.config)
        draft.metrics = _describe(student, spec, has_masked_lm_head(source))
        student.save_pretrained(cell.folder, get_tokenizer(source))
    cell.stamp_folder()


if __name__ == "__main__":
    main()
