"""Tokenise text once into 16-bit memory-mapped shards for pretraining and distillation.

    python code/prepare_corpus.py --recipe my-recipe.yaml     # what a recipe asks for
    # embedded: docstrings of the installed libraries, no download (about a minute)
    python code/prepare_corpus.py --source docs --limit-tokens 500000 --output data/corpus/docs
    # study: Wikipedia text in parquet (79 MB of text, under a minute)
    python code/prepare_corpus.py --source parquet:data/wikipedia/train.parquet \\
        --output data/corpus/wikipedia
    # your own text, a document a line, as the original's dump.txt
    python code/prepare_corpus.py --source lines:dump.txt --output data/corpus/dump
    # paper: Wikipedia streamed from the hub, and your copy of the books (hours)
    python code/prepare_corpus.py --source hub:wikimedia/wikipedia:20231101.en \\
        "parquet:books/*.parquet" --output data/corpus/paper

A run that was killed continues when the same command is given again.
"""

import argparse
import os
from pathlib import Path

# One Rust thread a core; the tokenizer works before any process is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from distilbert_kit.script import argument_parser, entry_point, refuse_options

from distilbert_kit.corpus.prepare import prepare_corpus
from distilbert_kit.corpus.text_sources import open_source
from distilbert_kit.data.sources import DataUsed
from distilbert_kit.errors import UserError
from distilbert_kit.study.cells import corpus_cell
from distilbert_kit.study.inputs import open_recipe, pinned_source, pinned_weights
from distilbert_kit.study.records import recording


def parse_arguments() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add(
        "--source",
        nargs="+",
        default=["docs"],
        metavar="SOURCE",
        help="docs, data:DATASET/SPLIT, lines:FILE, parquet:FILE-OR-PATTERN, "
        "hub:DATASET[:CONFIG][@COMMIT]; several are read in turn (default: docs)",
    )
    add("--recipe", help="take sources, limits and folder from a recipe, and write the record")
    add("--output", type=Path, help="folder for the shards")
    add("--tokenizer", default="bert-base-uncased", help="checkpoint folder or hub name")
    add("--text-column", default="text", help="of parquet and hub sources")
    add("--max-length", type=int, default=512, help="tokens a sequence, CLS and SEP included")
    add("--limit-tokens", type=int, help="stop after so many tokens")
    add("--validation-fraction", type=float, default=0.01, help="share of documents held out")
    add("--shard-tokens", type=int, default=1 << 24, help="tokens after which a shard is closed")
    add(
        "--encoding-errors",
        choices=("strict", "replace"),
        default="strict",
        help="stop at a line that is not UTF-8, or replace its invalid bytes by U+FFFD",
    )
    given = parser.parse_args()
    if given.recipe is not None:
        decided = sorted(vars(given).keys() - {"recipe"})
        refuse_options(parser, given, decided, "the recipe decides; leave it out")
    return given


def prepare(arguments: argparse.Namespace, key: str | None = None) -> tuple[dict, list[DataUsed]]:
    """Prepare the corpus and print what it holds; returns the manifest and what was read.

    With the `key` of a recipe's cell, a corpus of another key makes room.
    """
    if arguments.limit_tokens is not None and arguments.limit_tokens < 1:
        raise UserError(f"--limit-tokens {arguments.limit_tokens}: give a positive number")
    sources = [
        open_source(source, arguments.text_column, arguments.encoding_errors)
        for source in arguments.source
    ]
    # Imported late, because it loads torch: a mistyped source is reported at once.
    from distilbert_kit.models.tokenizers import get_tokenizer

    tokenizer = get_tokenizer(arguments.tokenizer)
    tokenizer.name_or_path = tokenizer.name_or_path or arguments.tokenizer
    manifest = prepare_corpus(
        arguments.output,
        sources,
        tokenizer,
        max_length=arguments.max_length,
        validation_fraction=arguments.validation_fraction,
        limit_tokens=arguments.limit_tokens,
        shard_tokens=arguments.shard_tokens,
        key=key,
        progress=True,
    )
    for name, split in manifest["splits"].items():
        print(
            f"{name}: {split['documents']:,} documents, {split['sequences']:,} sequences, "
            f"{split['tokens']:,} tokens, {len(split['shards'])} shards"
        )
    print("dropped: " + ", ".join(f"{n:,} {reason}" for reason, n in manifest["dropped"].items()))
    return manifest, [source.used for source in sources if source.used]


@entry_point
def main() -> None:
    """Prepare a corpus from the command line or for a recipe."""
    arguments = parse_arguments()
    if arguments.recipe is None:
        if arguments.output is None:
            raise UserError("give --output, the folder for the shards, or --recipe")
        prepare(arguments)
        return
    recipe = open_recipe(arguments.recipe)
    corpus, cell = recipe.require("corpus"), corpus_cell(recipe)
    arguments.output = cell.folder
    arguments.source = [pinned_source(recipe, source) for source in corpus.source]
    arguments.tokenizer = pinned_weights(recipe, recipe.tokenizer_of(recipe.teacher))
    arguments.limit_tokens = corpus.limit_tokens
    arguments.validation_fraction = corpus.validation_fraction
    with recording(cell.record, **cell.provenance) as draft:
        manifest, draft.data = prepare(arguments, cell.key)
        draft.metrics = {name: manifest[name] for name in ("splits", "dropped", "settings")}
    cell.stamp_folder()


if __name__ == "__main__":
    main()
