"""Classify texts or answer questions with a saved model: PyTorch weights or an int8 graph.

    python code/predict.py --model my-model "a fine film" "a dull one"
    python code/predict.py --model my-model --file reviews.txt --json
    python code/predict.py --model my-model --file reviews.csv --columns text
    cat reviews.txt | python code/predict.py --model my-model
    python code/predict.py --model my-squad-model --question "Where is it?" --context "It is here."
    python code/predict.py --model my-squad-model --file questions.jsonl --n-best 3 --json

The folder decides what is done; ours and transformers' are both read. Files and standard input hold
one text a line; a pair of texts has a tab between them. Of a CSV, --columns names the text's
column, or the two of a pair. Questions and their contexts are fields of a CSV, of a JSON list or
of JSON lines (question, context, or --columns); with --question alone, standard input is the
context. The output is a table, or one JSON object a line with --json; an answer's score is the sum
of its start and end logit, its start and end are characters of the context.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError
from scipy.special import softmax

from distilbert_kit.csv_data import find_column, read_csv
from distilbert_kit.data import ClassificationDataset
from distilbert_kit.deploy import load_classifier
from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.evaluation import predict_logits
from distilbert_kit.model import DistilBERTForQuestionAnswering
from distilbert_kit.question_answering import answer_questions
from distilbert_kit.recipes import WindowSettings
from distilbert_kit.weights import get_tokenizer, resolve_checkpoint

Texts = list[str] | list[tuple[str, str]]
WIDTH = 80  # characters of a text in the table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--model", required=True, help="folder of a fine-tuned model, or hub name")
    parser.add_argument("--file", type=Path, help="texts, or questions with their contexts")
    parser.add_argument("--columns", nargs="+", help="one or two columns of the file")
    parser.add_argument("--encoding", default="utf-8-sig")
    parser.add_argument("--max-length", type=int, help="tokens of a text, or of a window")
    parser.add_argument("--question", help="of a question-answering model")
    parser.add_argument("--context", help="the text that holds the answer")
    parser.add_argument("--context-file", type=Path, help="the same as a file")
    parser.add_argument("--n-best", type=int, help="answers to a question (default: 1)")
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
    if arguments.n_best is not None and arguments.n_best < 1:
        raise UserError(f"--n-best {arguments.n_best}: give at least 1")
    if arguments.question is None and (arguments.context or arguments.context_file):
        raise UserError("--context needs --question: give both")
    if arguments.context and arguments.context_file:
        raise UserError("--context and --context-file: give one of them")
    if arguments.question is not None and (arguments.texts or arguments.file):
        raise UserError("--question with texts or --file: give one of them")
    return arguments


def read_source(path: Path | None, encoding: str, advice: str) -> str:
    """The whole of a file, or of standard input."""
    try:
        return (path.read_bytes() if path else sys.stdin.buffer.read()).decode(encoding)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; {advice}") from None
    except (UnicodeError, LookupError) as error:
        where = path or "standard input"
        raise UserError(f"{where}: not {encoding} ({error}); give --encoding") from None


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
    lines = read_source(arguments.file, arguments.encoding, "give one text a line").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return as_pairs(lines, where)


def classify(folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """For each text (or pair) its label and the probabilities of all; of a regression the score."""
    if arguments.question is not None or arguments.n_best is not None:
        raise UserError(f"{folder}: a classifier; give texts instead of --question and --n-best")
    texts = read_texts(arguments)
    model, tokenizer = load_classifier(folder), get_tokenizer(folder)
    most = arguments.max_length or tokenizer.model_max_length
    most = min(most, model.config.max_position_embeddings)
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


def parse_rows(text: str, where: str) -> list:
    """The objects of a JSON list, or of JSON lines."""
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except json.JSONDecodeError:
        rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: line {number} is no JSON ({error}); give a list or one object a line"
            ) from None
    return rows


def read_questions(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Questions and contexts of the command line, a file or standard input."""
    if arguments.question is not None:
        context = arguments.context
        if context is None:
            context = read_source(arguments.context_file, arguments.encoding, "give a text")
        return [arguments.question], [context]
    where, names = str(arguments.file or "standard input"), arguments.columns
    names = ("question", "context") if names is None else tuple(names)
    if len(names) != 2:
        raise UserError("--columns: name the question's column and the context's")
    if arguments.file and arguments.file.suffix.lower() in (".csv", ".tsv"):
        table = read_csv(arguments.file, arguments.encoding)
        found = [find_column(list(table.columns), n, (), "--columns", where) for n in names]
        rows = table[found].fillna("").set_axis(names, axis=1).to_dict("records")
    else:
        advice = "give JSON or CSV with question and context"
        rows = parse_rows(read_source(arguments.file, arguments.encoding, advice), where)
    if not rows:
        raise UserError(f"{where}: no questions; give --question and --context, or a file")
    for number, row in enumerate(rows, 1):
        for name in names:
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{where}: row {number} has no text {name!r}; add it")
    questions, contexts = ([row[name] for row in rows] for name in names)
    return questions, contexts


def answer(folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """For each question its best answers, with where they are in the context."""
    if arguments.texts:
        raise UserError(f"{folder}: it answers questions; give --question and --context, or --file")
    questions, contexts = read_questions(arguments)
    model = DistilBERTForQuestionAnswering.from_pretrained(folder, require_head=True)
    tokenizer = get_tokenizer(folder)
    most = arguments.max_length or WindowSettings().max_length
    most = min(most, tokenizer.model_max_length, model.config.max_position_embeddings)
    try:
        settings = WindowSettings(max_length=most)
    except ValidationError as error:
        raise UserError(f"--max-length: {error.errors()[0]['msg']}") from None
    best = answer_questions(
        model, tokenizer, questions, contexts, settings, n_best=arguments.n_best or 1
    )
    return [
        {"question": question, "answers": [found._asdict() for found in answers]}
        for question, answers in zip(questions, best, strict=True)
    ]


# By the ending of the architecture in config.json; another head adds its function here.
HEADS: dict[str, Callable[[Path, argparse.Namespace], list[dict]]] = {
    "ForSequenceClassification": classify,
    "ForQuestionAnswering": answer,
}


def choose_head(folder: Path) -> Callable[[Path, argparse.Namespace], list[dict]]:
    """What the model of a folder can do; UserError when that is nothing we know."""
    try:
        names = json.loads((folder / "config.json").read_text()).get("architectures") or ["unknown"]
    except (FileNotFoundError, ValueError):
        raise UserError(f"{folder}: no readable config.json; give a saved model") from None
    for ending, function in HEADS.items():
        if names[0].endswith(ending):
            return function
    raise UserError(
        f"{folder}: a {names[0]}, which predicts no labels or answers; give a fine-tuned model"
    )


def shorten(text: str) -> str:
    """The beginning of a text, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def as_table(rows: list[dict]) -> str:
    """Label, probability (or score) and the beginning of the text, one line for each.

    Of answers score, characters and text, below their question if there are several questions.
    """
    if "answers" in rows[0]:
        lines = []
        for row in rows:
            lines += [shorten(row["question"])] if len(rows) > 1 else []
            for found in row["answers"]:
                place = f"{found['start']}–{found['end']}"
                lines.append(f"{found['score']:8.3f}  {place:>11}  {shorten(found['text'])}")
        return "\n".join(lines)
    width = max((len(row.get("label", "")) for row in rows), default=0)
    lines = []
    for row in rows:
        text = row["text"] if isinstance(row["text"], str) else " | ".join(row["text"])
        number = row["probability"] if "label" in row else row["score"]
        lines.append(f"{row.get('label', ''):{width}}  {number:7.4f}  {shorten(text)}".lstrip())
    return "\n".join(lines)


@entry_point
def main() -> None:
    arguments = parse_arguments()
    folder = resolve_checkpoint(arguments.model)
    rows = choose_head(folder)(folder, arguments)
    if arguments.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(as_table(rows))


if __name__ == "__main__":
    main()
