"""Classify texts with a saved model: PyTorch weights or an int8 graph, ours or transformers'.

    python code/predict.py --model my-model "a fine film" "a dull one"
    python code/predict.py --model my-model --file reviews.txt --json
    python code/predict.py --model my-model --file reviews.csv --columns text
    cat reviews.txt | python code/predict.py --model my-model

Files and standard input hold one text a line; a pair of texts has a tab between them. Of a CSV,
--columns names the text's column, or the two of a pair. The output is a table, or one JSON object
a line with --json.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scipy.special import softmax

from distilbert_kit.csv_data import find_column, read_csv
from distilbert_kit.data import ClassificationDataset
from distilbert_kit.deploy import load_classifier
from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.evaluation import predict_logits
from distilbert_kit.weights import get_tokenizer, resolve_checkpoint

Texts = list[str] | list[tuple[str, str]]
WIDTH = 80  # characters of a text in the table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--model", required=True, help="folder of a saved classifier, or hub name")
    parser.add_argument("--file", type=Path, help="one text a line, or a CSV with --columns")
    parser.add_argument("--columns", nargs="+", help="one or two columns of the CSV")
    parser.add_argument("--encoding", default="utf-8-sig")
    parser.add_argument("--max-length", type=int, help="tokens (default: as the tokenizer says)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    if arguments.texts and arguments.file:
        raise UserError("texts and --file: give one of them")
    if arguments.columns and not arguments.file:
        raise UserError("--columns needs --file: name the CSV")
    if len(arguments.columns or ()) > 2:
        raise UserError(f"--columns has {len(arguments.columns)} names: give one, or two of a pair")
    if arguments.max_length is not None and arguments.max_length < 8:
        raise UserError(f"--max-length {arguments.max_length}: give at least 8")
    return arguments


def as_pairs(lines: Sequence[str], where: str) -> Texts:
    """Lines as texts, or as pairs if they hold a tab; UserError for a mixture or an empty text."""
    parts = [tuple(part.strip() for part in line.split("\t")) for line in lines]
    if not parts:
        raise UserError(f"{where}: no texts; give at least one")
    for number, texts in enumerate(parts, 1):
        if not all(texts):
            raise UserError(f"{where}: text {number} is empty; remove it")
        if len(texts) != len(parts[0]) or len(texts) > 2:
            raise UserError(
                f"{where}: text {number} has {len(texts) - 1} tabs and the first "
                f"{len(parts[0]) - 1}; give single texts without, or pairs with one tab each"
            )
    return [texts[0] for texts in parts] if len(parts[0]) == 1 else parts


def read_texts(arguments: argparse.Namespace) -> Texts:
    """The texts, or pairs, of the command line, a file or standard input."""
    if arguments.texts:
        return as_pairs(arguments.texts, "command line")
    where = str(arguments.file or "standard input")
    if arguments.columns:
        table = read_csv(arguments.file, arguments.encoding)
        names = [
            find_column(list(table.columns), name, (), "--columns", where)
            for name in arguments.columns
        ]
        rows = table[names].fillna("").replace(r"\s+", " ", regex=True)  # tabs join the pairs
        return as_pairs(rows.agg("\t".join, axis=1).tolist(), where)
    try:
        source = arguments.file.read_bytes() if arguments.file else sys.stdin.buffer.read()
        lines = source.decode(arguments.encoding).splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{where}: no such file; give one text a line") from None
    except (UnicodeError, LookupError) as error:
        raise UserError(f"{where}: not {arguments.encoding} ({error}); give --encoding") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return as_pairs(lines, where)


def classify(folder: Path, texts: Texts, max_length: int | None) -> list[dict]:
    """For each text (or pair) its label and the probabilities of all; of a regression the score."""
    model, tokenizer = load_classifier(folder), get_tokenizer(folder)
    most = min(max_length or tokenizer.model_max_length, model.config.max_position_embeddings)
    dataset = ClassificationDataset(texts, None, tokenizer, most)
    if dataset.truncated:
        print(f"{dataset.truncated} texts are cut to {most} tokens", file=sys.stderr)
    logits = predict_logits(model, dataset)
    if model.num_labels == 1:
        return [{"text": t, "score": float(x)} for t, x in zip(texts, logits[:, 0], strict=True)]
    rows = []
    for text, probabilities in zip(texts, softmax(logits.astype(float), axis=1), strict=True):
        best = int(probabilities.argmax())
        rows.append(
            {
                "text": text,
                "label": model.labels[best],
                "probability": float(probabilities[best]),
                "probabilities": dict(zip(model.labels, probabilities.tolist(), strict=True)),
            }
        )
    return rows


# By the ending of the architecture in config.json; another head adds its function here.
HEADS: dict[str, Callable[[Path, Texts, int | None], list[dict]]] = {
    "ForSequenceClassification": classify,
}


def choose_head(folder: Path) -> Callable[[Path, Texts, int | None], list[dict]]:
    """What the model of a folder can do; UserError when that is nothing we know."""
    try:
        names = json.loads((folder / "config.json").read_text()).get("architectures") or ["unknown"]
    except (FileNotFoundError, ValueError):
        raise UserError(f"{folder}: no readable config.json; give a saved model") from None
    for ending, function in HEADS.items():
        if names[0].endswith(ending):
            return function
    raise UserError(
        f"{folder}: a {names[0]}, which predicts no labels; give a fine-tuned classifier"
    )


def as_table(rows: list[dict]) -> str:
    """Label, probability (or score) and the beginning of the text, one line for each."""
    width = max((len(row.get("label", "")) for row in rows), default=0)
    lines = []
    for row in rows:
        text = row["text"] if isinstance(row["text"], str) else " | ".join(row["text"])
        shown = text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
        number = row["probability"] if "label" in row else row["score"]
        lines.append(f"{row.get('label', ''):{width}}  {number:7.4f}  {shown}".lstrip())
    return "\n".join(lines)


@entry_point
def main() -> None:
    arguments = parse_arguments()
    folder = resolve_checkpoint(arguments.model)
    head = choose_head(folder)
    rows = head(folder, read_texts(arguments), arguments.max_length)
    if arguments.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(as_table(rows))


if __name__ == "__main__":
    main()
