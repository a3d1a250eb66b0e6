"""Students cut from teacher layers: which layers, and what of them is copied."""

import dataclasses
import random
import re

from ..errors import UserError
from .config import ModelConfig
from .model import DistilBERTForMaskedLM

# What a student of BERT is other than its teacher; one of MPNet is an MPNet.
_DISTILBERT = {
    "model_type": "distilbert",
    "type_vocab_size": 0,
    "layer_norm_eps": ModelConfig.layer_norm_eps,
    "classifier_dropout": ModelConfig.classifier_dropout,
    "qa_dropout": ModelConfig.qa_dropout,
}

LAYERS_HELP = "a strategy, how many layers, evenly, or which, such as 0,2,4 (one alone: 6,)"
LAYER_STRATEGIES = ("released", "even", "first", "last", "random")


def choose_layers(
    strategy: str, teacher_layers: int, count: int | None = None, seed: int = 0
) -> list[int]:
    """Teacher layers that a student of `count` layers (half of them) starts from.

    `strategy` may be the numbers of the layers ("0,2,4"; "6," is layer 6 alone), or how many to
    take, evenly ("6"). "released" is 0, 2, 4, 7, 9, 11 (the authors' extraction script) and needs
    12 -> 6; "even" takes every (teacher_layers / count)-th; "random" draws without replacement, in
    order. Raises UserError for layers that the teacher lacks, and for two counts that differ.
    """
    if strategy[:1].isdigit():
        try:
            numbers = [int(number) for number in strategy.removesuffix(",").split(",")]
        except ValueError:
            raise UserError(f"layers {strategy}: use numbers such as 0,2,4") from None
        asked = numbers[0] if strategy.isdecimal() else len(numbers)
        if count not in (None, asked):
            raise UserError(f"layers {strategy} are {asked}, not {count}: leave out the count")
        if not strategy.isdecimal():
            _check_layers(numbers, teacher_layers)
            return numbers
        strategy, count = "even", asked
    count = teacher_layers // 2 if count is None else count
    if not 1 <= count <= teacher_layers:
        raise UserError(
            f"cannot cut {count} layers from a teacher that has {teacher_layers}; give another "
            "count, or the numbers of the layers, such as 0,2,4"
        )
    if strategy == "released":
        if (teacher_layers, count) != (12, 6):
            raise UserError(
                f"strategy 'released' is defined for 12 -> 6 layers, not {teacher_layers} -> "
                f"{count}; use 'even'"
            )
        return [0, 2, 4, 7, 9, 11]
    if strategy == "even":
        return [i * teacher_layers // count for i in range(count)]
    if strategy == "first":
        return list(range(count))
    if strategy == "last":
        return list(range(teacher_layers - count, teacher_layers))
    if strategy == "random":
        return sorted(random.Random(seed).sample(range(teacher_layers), count))
    raise UserError(f"unknown layer strategy {strategy!r}: use {', '.join(LAYER_STRATEGIES)}")


def _check_layers(layers: list[int], depth: int) -> None:
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise UserError(f"teacher layer {wrong[0]} does not exist: choose from 0 to {depth - 1}")


def extract_student(
    teacher: DistilBERTForMaskedLM, layers: list[int], vocabulary_transform: bool = True
) -> DistilBERTForMaskedLM:
    """Cut a DistilBERT student out of a masked-LM teacher (arXiv 1910.01108, section 3).

    Of an MPNet teacher the student is an MPNet. Copied: word and position embeddings, MPNet's
    relative-position bias, the chosen blocks, all LayerNorms of the encoder, the decoder bias (its
    weight is the word embeddings), and, when asked, the vocabulary transform with its norm, which
    the author advises (transformers#1582). Not copied: token types and pooler, which the student
    lacks.
    """
    _check_layers(layers, teacher.config.num_layers)
    shape = dataclasses.replace(
        teacher.config,
        num_layers=len(layers),
        **({} if teacher.config.model_type == "mpnet" else _DISTILBERT),
    )
    student = DistilBERTForMaskedLM(shape)
    source = teacher.state_dict()
    copied = {
        name: source[re.sub(r"blocks\.(\d+)", lambda m: f"blocks.{layers[int(m.group(1))]}", name)]
        for name in student.state_dict()
        if vocabulary_transform or not name.startswith("transform")
    }
    student.load_state_dict(copied, strict=False)
    return student
