"""Classify texts or answer questions with a saved model: PyTorch weights or an int8 graph.

    python code/predict.py --model my-model "a fine film" "a dull one"
    python code/predict.py --model my-model --file reviews.txt --json
    python code/predict.py --model my-model --file reviews.csv --columns text
    cat reviews.txt | python code/predict.py --model my-model
    python code/predict.py --model my-squad-model --question "Where is it?" --context "It is here."
    python code/predict.py --model my-squad-model --file questions.jsonl --n-best 3 --json

The model's head decides the task; transformers' models work too. Files and standard input hold
one text per line; a tab separates the two texts of a pair. For a CSV, --columns names the text
column, or the two of a pair; the default is a column with a usual name. Questions and their
contexts are fields of a CSV, of a JSON list or of JSON lines (question, context, or --columns), or
those of a file in SQuAD's format; a field id is kept in JSON. With --question alone, standard input
is the context. Files may be compressed with gzip.

The output is a table, or one JSON object a line with --json. An answer's score is the sum of its
start and end logit, its start and end are characters of the context. A model of one output, as a
regression or a reranker, gives a text no label but a score: that output as it is, no probability.
What is cut, because the model reads no more of it, is told on stderr, and in JSON by "truncated".
"""

import argparse
import json
import sys
from pathlib import Path

from distilbert_kit.script import argument_parser, entry_point

from distilbert_kit.errors import UserError, one_line
from distilbert_kit.serve.prediction import Answerer, load_predictor
from distilbert_kit.serve.reading import (
    Asked,
    as_pairs,
    check_unicode,
    read_questions_and_contexts,
    read_source,
    read_texts,
)

WIDTH = 80  # characters of a text in the table


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--model", required=True, help="folder of a fine-tuned model, or hub name")
    parser.add_argument("--file", type=Path, help="texts, or questions with their contexts")
    parser.add_argument("--columns", nargs="+", help="one or two columns of the file")
    parser.add_argument("--encoding", default="utf-8-sig", help="of the file (default: UTF-8)")
    parser.add_argument("--drop-missing", action="store_true", help="leave out empty texts")
    parser.add_argument("--max-length", type=int, help="tokens of a text, or of a window")
    parser.add_argument("--question", help="for a question-answering model")
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


def asked_questions(arguments: argparse.Namespace) -> Asked:
    """Questions and contexts of the command line, a file or standard input."""
    if arguments.question is None:
        return read_questions_and_contexts(arguments.file, arguments.columns, arguments.encoding)
    context = arguments.context
    if context is None:
        context = read_source(arguments.context_file, arguments.encoding, "give a text")
    asked = Asked([arguments.question], [context], [""], "command line")
    check_unicode([arguments.question, context], asked.where)
    return asked


def predict(arguments: argparse.Namespace) -> list[dict]:
    """What the model says of what was given: a row for each text or question."""
    name, predictor = arguments.model, load_predictor(arguments.model, arguments.max_length)
    if isinstance(predictor, Answerer):
        if arguments.drop_missing:
            raise UserError(f"{name}: --drop-missing is for a classifier's texts; leave it out")
        if arguments.texts:
            raise UserError(
                f"{name}: it answers questions; give --question and --context, or --file"
            )
        questions, contexts, ids, where = asked_questions(arguments)
        rows = predictor(questions, contexts, n_best=arguments.n_best or 1, where=where)
        tell_cut(rows, "question", predictor.settings.question_length)
        return [row if key == "" else {"id": key} | row for key, row in zip(ids, rows, strict=True)]
    if arguments.question is not None or arguments.n_best is not None:
        raise UserError(f"{name}: a classifier; give texts instead of --question and --n-best")
    drop = arguments.drop_missing
    rows = predictor(
        as_pairs(arguments.texts, "command line", drop)
        if arguments.texts
        else read_texts(arguments.file, arguments.columns, arguments.encoding, drop)
    )
    tell_cut(rows, "text", predictor.max_length)
    return rows


def tell_cut(rows: list[dict], kind: str, most: int) -> None:
    """Say on stderr how many texts or questions were cut to `most` tokens."""
    if count := sum(row["truncated"] for row in rows):
        are = f"{kind} is" if count == 1 else f"{kind}s are"
        print(f"{count} {are} cut to {most} tokens", file=sys.stderr)


def shorten(text: str) -> str:
    """The beginning of a text, in one line."""
    text = one_line(text)
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
    labels = [one_line(row.get("label", "")) for row in rows]
    for number, row in enumerate(rows):
        if row.get("labels") == []:  # of a multi-label model
            labels[number] = f"none, nearest {labels[number]}"
    width = max(map(len, labels))
    lines = []
    for label, row in zip(labels, rows, strict=True):
        text = row["text"] if isinstance(row["text"], str) else " | ".join(row["text"])
        number = row["probability"] if "label" in row else row["score"]
        # Of a multi-label model the most probable label is shown, and how many hold besides.
        more = len(row.get("labels", ())) - 1
        shown = f"{number:7.4f}" + (f" +{more}" if more > 0 else "")
        lines.append(f"{label:{width}}  {shown}  {shorten(text)}".lstrip())
    return "\n".join(lines)


@entry_point
def main() -> None:
    arguments = parse_arguments()
    rows = predict(arguments)
    if arguments.json:
        for row in rows:
            plain = "utf" not in (sys.stdout.encoding or "utf-8").lower()
            print(json.dumps(row, ensure_ascii=plain))
    else:
        print(as_table(rows))


if __name__ == "__main__":
    main()
