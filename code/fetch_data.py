"""Fetch the data sets of a recipe from the hub into `data/`, checked against data/sources.yaml.

make data RECIPE=study              # all that the recipe needs
make data DATASET=glue/sst2         # one
"""

import argparse

from distilbert_kit.data.listed import sources
from distilbert_kit.data.tables import load_table
from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.paths import DATA
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.recipes import load_recipe


def fetch(dataset: str, split: str) -> None:
    """Write one split as parquet, unless a good one is there; UserError when it cannot be had."""
    path = DATA / dataset / f"{split}.parquet"
    source = sources().get(dataset)
    if source is None or split not in source["splits"]:
        raise UserError(f"{dataset}/{split}: not listed in data/sources.yaml")
    if not path.exists():
        if "hub" not in source or source["splits"][split].get("local"):
            raise UserError(f"{dataset}: not on the hub in this form; put it at {path}")
        from datasets import load_dataset

        try:
            table = load_dataset(source["hub"], source.get("config"), split=split)
        except Exception as error:
            raise UserError(
                f"{dataset}/{split}: not fetched from the hub ({type(error).__name__}); "
                "check the network, or set DATA_DIR to a folder that holds it"
            ) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        table.select_columns(source["columns"]).to_parquet(temporary)
        temporary.replace(path)
    _, used = load_table(dataset, split, source["columns"])
    print(f"{used.name}: {used.rows:,} rows, SHA-256 {used.sha256[:12]}… as listed")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="study")
    parser.add_argument("--dataset", help="one data set of data/sources.yaml")
    arguments = parser.parse_args()
    if arguments.dataset:
        known = sources().get(arguments.dataset)
        if known is None:
            raise UserError(
                f"no data set {arguments.dataset!r}: choose from {', '.join(sources())}"
            )
        wanted = {(arguments.dataset, s) for s, of in known["splits"].items() if "local" not in of}
    else:
        cells = evidence_cells(load_recipe(arguments.recipe))
        wanted = {split for cell in cells for split in cell.data}
    wanted = {split for split in wanted if not split[0].startswith("embedded/")}
    if not wanted:
        print("this recipe needs no download")
    for dataset, split in sorted(wanted):
        fetch(dataset, split)


if __name__ == "__main__":
    main()
