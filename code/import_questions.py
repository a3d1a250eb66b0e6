"""Make a question-answering data folder from SQuAD's JSON files or from your own CSVs.

    python code/import_questions.py --train train-v1.1.json --validation dev-v1.1.json \\
        --output squad-data
    python code/import_questions.py --train faq.csv --validation faq-dev.csv --output faq-data
    DATA_DIR=faq-data python code/finetune.py --recipe quick --model minilm --task squad --save
    DATA_DIR=faq-data python code/evaluate_model.py --task squad --output faq-answers \\
        --checkpoint results/quick/models/minilm-squad-0

A CSV row has a question, a context and an answer, in columns of these names or in --columns. The
answer's first occurrence in the context is used. The folder gets a sources.yaml of rows and hashes,
which every later reading checks; records call rows that are not SQuAD's `own/squad`. Files of data/
itself must be the official ones.
"""

from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point

import datasets
import yaml

from distilbert_kit.data.questions import COLUMNS, misplaced, read_questions
from distilbert_kit.data.sources import is_listed, official_sources, read_sources, rows_sha256
from distilbert_kit.errors import UserError
from distilbert_kit.files import check_output_file, replacing_file, write_atomically

DATASET = "squad"  # the data set of the task squad
SPLITS = ("train", "validation")


@entry_point
def main() -> None:
    parser = argument_parser(__doc__)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, help=".json of SQuAD's, .csv or .tsv")
    parser.add_argument("--output", type=Path, required=True, help="folder, then used as DATA_DIR")
    parser.add_argument("--columns", nargs=3, metavar=tuple(map(str.upper, COLUMNS)))
    parser.add_argument("--encoding", default="utf-8-sig", help="of CSVs (default: UTF-8)")
    parser.add_argument(
        "--drop-unanswerable", action="store_true", help="leave out questions without an answer"
    )
    arguments = parser.parse_args()
    given = {split: getattr(arguments, split) for split in SPLITS if getattr(arguments, split)}
    if not given:
        raise UserError("nothing to read: give --train, --validation or both")
    tables = {
        split: read_questions(
            path, arguments.columns, arguments.drop_unanswerable, arguments.encoding
        )
        for split, path in given.items()
    }
    found = {
        split: {"rows": len(rows), "sha256": rows_sha256(rows)} for split, rows in tables.items()
    }
    output, list_path = arguments.output, arguments.output / "sources.yaml"
    listed = read_sources(list_path) if list_path.is_file() else {}
    official = official_sources()[DATASET]
    others = (name for name in official_sources() if name != DATASET and (output / name).exists())
    if not listed and (other := next(others, None)):
        raise UserError(
            f"{output}: holds {other}, which a new list would hide; name another folder"
        )
    source = listed.setdefault(DATASET, {"columns": official["columns"], "splits": {}})
    fixed = "hub" in source  # a list that was not made here
    for split in found if fixed else ():
        if not is_listed(found[split], source, split):
            raise UserError(
                f"{given[split]}: {found[split]['rows']:,} questions, not those that {list_path} "
                f"lists as {DATASET}/{split}; choose another --output"
            )
    for split in tables:
        path = output / DATASET / f"{split}.parquet"
        check_output_file(path)
        if path.exists() and split not in source["splits"]:
            raise UserError(f"{path}: is there, not listed in {list_path}; name a new folder")
    if not fixed:  # listed first: after a kill the same command goes on
        source["splits"] |= found
        write_atomically(list_path, yaml.safe_dump(listed, sort_keys=False, allow_unicode=True))
    for split, rows in tables.items():
        with replacing_file(output / DATASET / f"{split}.parquet") as temporary:
            datasets.Dataset.from_list(rows).to_parquet(temporary)
    for split, rows in tables.items():
        kind = "as in the official split"
        if not is_listed(found[split], official, split):
            kind = f"listed in {list_path}"
        print(f"{output / DATASET / split}.parquet: {len(rows):,} questions, {kind}", end="")
        wrong = misplaced(rows)
        use = "unused" if split == "train" else "scored by their text all the same"
        print(f"; {wrong:,} answers are not where they say, {use}" if wrong else "")


if __name__ == "__main__":
    main()
