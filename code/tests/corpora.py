"""Texts, a naive preparation to compare with, and the script."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

from distilbert_kit.corpus import prepare as corpus
from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.text_sources import Source
from distilbert_kit.files import with_sha256
from distilbert_kit.models.tokenizers import get_tokenizer

SCRIPT = Path(__file__).parents[1] / "prepare_corpus.py"
WORDS = ["the", "history", "of", "language", "began", "when", "rivers", "met", "mountains", "and"]
TOKENIZER = get_tokenizer("bert-base-uncased")
TOKENIZER.name_or_path = "bert-base-uncased"
ENCODER = corpus.WordEncoder(TOKENIZER)


def sentence(number: int, words: int = 20) -> str:
    return " ".join(Random(number).choices(WORDS, k=words)) + f" {number}."


def texts_source(texts: list[str]) -> Source:
    return Source({"source": "texts"}, lambda: iter(texts))


def prepare(folder: Path, texts: list[str], **options) -> dict:
    options = {"validation_fraction": 0.0} | options
    return prepare_corpus(folder, [texts_source(texts)], TOKENIZER, **options)


def manifest_changed(folder: Path, change) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(with_sha256(content)))


def ids_of(text: str) -> list[int]:
    """The reference: transformers' own call, whole text at once."""
    return TOKENIZER(text, add_special_tokens=False, verbose=False)["input_ids"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def naive_sequences(texts: list[str], max_length: int) -> list[list[int]]:
    """What should be kept, written the plain way."""
    kept: list[list[int]] = []
    for text in texts:
        ids = ids_of(text)
        while ids:
            chunk, ids = ids[: max_length - 2], ids[max_length - 2 :]
            sequence = [TOKENIZER.cls_token_id, *chunk, TOKENIZER.sep_token_id]
            unknown = sequence.count(TOKENIZER.unk_token_id)
            if len(sequence) > 11 and unknown / len(sequence) < 0.5 and sequence not in kept:
                kept.append(sequence)
    return kept


TEXTS = [
    *(sentence(i) for i in range(30)),
    sentence(3),
    "too short",
    "",
    "the river met the sea and war",  # 7 + 2 tokens
    "a b c d e f g h i",  # 9 + 2 = 11 tokens: dropped
    "a b c d e f g h i j",  # 12: kept
    "☃ " * 9 + "a b c d e f g",  # 9 of 18 tokens unknown: dropped
    "☃ " * 8 + "a b c d e f g h",  # 8 of 18: kept
    " ".join(sentence(i) for i in range(100, 130)),
    "a " * 510,  # one full sequence
    "b " * 511,  # a full one and one word left over
]


def run_script(*arguments: object, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)  # fmt: skip
