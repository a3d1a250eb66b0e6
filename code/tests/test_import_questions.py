"""SQuAD's JSON files and plain CSVs become data sets; answers are scored by the official rules."""

import json
import os
import re
import string
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import yaml

import evaluate_model
import import_questions
from distilbert_kit.data.questions import misplaced, read_questions
from distilbert_kit.data.sources import rows_sha256, sources
from distilbert_kit.errors import UserError
from distilbert_kit.metrics import answer_scores
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForQuestionAnswering
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, DATA, ROOT
from distilbert_kit.study.recipes import load_recipe

CONTEXT = "The tower is in Paris. Paris is in France."


def squad_file(path, *questions, context=CONTEXT, title="Towers"):
    """A file in the layout of SQuAD's; a question is (id, text, answers as (text, start), …)."""
    qas = [
        {
            "id": key,
            "question": text,
            "answers": [{"text": a, "answer_start": start} for a, start in answers],
            "is_impossible": not answers,
        }
        for key, text, *answers in questions
    ]
    paragraphs = [{"context": context, "qas": qas}]
    content = {"version": "1.1", "data": [{"title": title, "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["import_questions.py", *map(str, arguments)])
    import_questions.main.__wrapped__()


def test_a_squad_file_is_read_as_it_is(tmp_path):
    where = ("q1", " Where is it?", ("Paris", 16), ("in Paris", 13))
    path = squad_file(tmp_path / "dev.json", where, ("q2", "What is in Paris?", ("The tower", 0)))
    first, second = read_questions(path)
    assert first == {
        "id": "q1",
        "context": CONTEXT,
        "question": " Where is it?",  # the official texts keep their white space
        "answers": {"text": ["Paris", "in Paris"], "answer_start": [16, 13]},
    }
    assert second["answers"] == {"text": ["The tower"], "answer_start": [0]}
    assert misplaced([first, second]) == 0
    wrong = squad_file(tmp_path / "wrong.json", ("q1", "Where?", ("Paris", 0)))
    assert misplaced(read_questions(wrong)) == 1
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_questions(path) == [first, second]


@pytest.mark.skipif(
    not (DATA / "squad" / "validation.parquet").is_file(), reason="needs SQuAD in DATA_DIR"
)
def test_the_official_dev_file_has_the_listed_hash(tmp_path):
    """The file as it was before the hub made rows of it: articles, paragraphs, questions."""
    articles = {}
    for row in pd.read_parquet(DATA / "squad" / "validation.parquet").itertuples():
        pairs = zip(row.answers["text"], row.answers["answer_start"].tolist(), strict=True)
        answers = [{"answer_start": start, "text": text} for text, start in pairs]
        asked = articles.setdefault(row.title, {}).setdefault(row.context, [])
        asked.append({"answers": answers, "question": row.question, "id": row.id})
    content = [
        {"title": title, "paragraphs": [{"context": c, "qas": q} for c, q in found.items()]}
        for title, found in articles.items()
    ]
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps({"data": content, "version": "1.1"}))
    rows = read_questions(path)
    assert rows_sha256(rows) == sources()["squad"]["splits"]["validation"]["sha256"]
    assert misplaced(rows) == 0


def test_a_csv_is_read_and_answers_start_where_they_are_first(tmp_path):
    path = tmp_path / "faq.csv"
    path.write_text(
        'Question;Passage;Answer\nWhere?;"In Paris; Paris is big.";Paris\nWho?;Ann did; Ann \n'
    )
    assert read_questions(path) == [
        {
            "id": "faq-1",
            "context": "In Paris; Paris is big.",
            "question": "Where?",
            "answers": {"text": ["Paris"], "answer_start": [3]},
        },
        {
            "id": "faq-2",
            "context": "Ann did",
            "question": "Who?",
            "answers": {"text": ["Ann"], "answer_start": [0]},
        },
    ]
    path.write_text("id,q,c,a\nx7,Where?,In Paris,Paris\n")
    (row,) = read_questions(path, ("q", "c", "a"))
    assert row["id"] == "x7" and row["answers"]["answer_start"] == [3]
    with pytest.raises(
        UserError, match=r"question \(--columns\) cannot be guessed; name one of its 4"
    ):
        read_questions(path)


def test_unanswerable_questions_are_refused_or_dropped(tmp_path):
    known = ("q1", "Where?", ("Paris", 16))
    path = squad_file(tmp_path / "train-v2.0.json", known, ("q2", "Who?"), ("q3", "When?"))
    with pytest.raises(
        UserError, match=r"'q2' has no answer in its context \(2 of 3 questions\).*v2"
    ):
        read_questions(path)
    assert [row["id"] for row in read_questions(path, drop_unanswerable=True)] == ["q1"]
    path = tmp_path / "faq.csv"
    path.write_text("question,context,answer\nWhere?,In Paris,Rome\nWhere?,In Paris,\n")
    with pytest.raises(UserError, match=r"'faq-1' has no answer in its context \(2 of 2"):
        read_questions(path)
    with pytest.raises(UserError, match="no question with an answer"):
        read_questions(path, drop_unanswerable=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "not in SQuAD's layout: the file: Invalid JSON"),
        ('{"rows": []}', "not in SQuAD's layout: data: Field required"),
        (
            '{"data": [{"paragraphs": [{"context": "c"}]}]}',
            "data > 0 > paragraphs > 0 > qas: Field",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}',
            "question '' has an empty id",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q"}]}]}]}',
            "question '1' has no answer in its context",
        ),
        ('{"data": []}', "no question with an answer"),
    ],
)
def test_other_json_is_named(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_questions(path)


def test_other_files_are_named(tmp_path):
    twice = squad_file(tmp_path / "twice.json", *[("q1", "Where?", ("Paris", 16))] * 2)
    empty = squad_file(tmp_path / "empty.json", ("q1", "  ", ("Paris", 16)))
    bare = squad_file(tmp_path / "bare.json", ("q1", "Where?", ("Paris", 16), ("", 0)))
    for path, message in (
        (twice, "id 'q1' occurs twice"),
        (empty, "question 'q1' has an empty question"),
        (bare, "question 'q1' has an empty answer"),
        (tmp_path / "none.json", "no such file"),
        (tmp_path / "none.csv", "no such file"),
        (tmp_path / "file.parquet", "neither .json nor .csv"),
    ):
        with pytest.raises(UserError, match=message):
            read_questions(path)
    with pytest.raises(UserError, match="--columns is for CSVs"):
        read_questions(twice, ("q", "c", "a"))


def test_a_folder_is_made_extended_and_kept_when_the_input_is_bad(tmp_path, monkeypatch, capsys):
    train = squad_file(tmp_path / "train.json", ("q1", "Where?", ("Paris", 16)))
    folder = tmp_path / "own"
    run(monkeypatch, "--train", train, "--output", folder)
    dev = squad_file(tmp_path / "dev.json", ("q2", "Where?", ("Paris", 0)))
    run(monkeypatch, "--validation", dev, "--output", folder)
    told = "1 answers are not where they say, "
    assert f"{told}scored by their text all the same" in capsys.readouterr().out
    run(monkeypatch, "--train", dev, "--output", tmp_path / "wrong")
    assert f"{told}unused" in capsys.readouterr().out
    listed = yaml.safe_load((folder / "sources.yaml").read_text())["squad"]
    for split, path in (("train", train), ("validation", dev)):
        rows = read_questions(path)
        assert listed["splits"][split] == {"rows": 1, "sha256": rows_sha256(rows)}
        assert pd.read_parquet(folder / "squad" / f"{split}.parquet")["id"].tolist() == [
            rows[0]["id"]
        ]
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    bad = squad_file(tmp_path / "bad.json", ("q3", "Where?"))
    with pytest.raises(UserError, match="bad"):
        run(monkeypatch, "--train", dev, "--validation", bad, "--output", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    with pytest.raises(UserError, match="nothing to read"):
        run(monkeypatch, "--output", folder)
    (tmp_path / "data" / "glue" / "rte").mkdir(parents=True)
    with pytest.raises(UserError, match="holds glue/rte, which a new list would hide"):
        run(monkeypatch, "--train", train, "--output", tmp_path / "data")
    assert not (tmp_path / "data" / "sources.yaml").exists()


def test_a_csv_is_read_in_the_encoding_that_is_named(tmp_path, monkeypatch):
    path = tmp_path / "own.csv"
    path.write_bytes("question,context,answer\nWhere?,It is a café.,café\n".encode("cp1252"))
    with pytest.raises(UserError, match="or name its --encoding, for example cp1252"):
        run(monkeypatch, "--train", path, "--output", tmp_path / "own")
    run(monkeypatch, "--train", path, "--output", tmp_path / "own", "--encoding", "cp1252")
    (row,) = pd.read_parquet(tmp_path / "own" / "squad" / "train.parquet").to_dict("records")
    assert row["context"] == "It is a café."


def test_a_killed_import_goes_on(tmp_path, monkeypatch):
    """Killed between its two files, it can be started again as it was."""
    train = squad_file(tmp_path / "train.json", ("q1", "Where?", ("Paris", 16)))
    dev = squad_file(tmp_path / "dev.json", ("q2", "Where?", ("Paris", 16)))
    command = ("--train", train, "--validation", dev, "--output", tmp_path / "own")
    put, places = import_questions.replacing_file, []

    def killed(path):
        places.append(path)
        if len(places) == 2:
            raise KeyboardInterrupt
        return put(path)

    monkeypatch.setattr(import_questions, "replacing_file", killed)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, *command)
    assert places[0].is_file() and not places[1].exists()
    run(monkeypatch, *command)
    assert places[0].is_file() and places[1].is_file()


def test_what_the_list_of_the_folder_does_not_name_stays(tmp_path, monkeypatch):
    train = squad_file(tmp_path / "train.json", ("q1", "Where?", ("Paris", 16)))
    folder = tmp_path / "own"
    (folder / "squad").mkdir(parents=True)
    (folder / "squad" / "train.parquet").write_text("mine")
    with pytest.raises(UserError, match=r"train\.parquet: is there, not listed in"):
        run(monkeypatch, "--train", train, "--output", folder)
    (folder / "sources.yaml").write_text("squad: a sport\n")
    with pytest.raises(UserError, match="not a list of data sets"):
        run(monkeypatch, "--train", train, "--output", folder)
    assert (folder / "squad" / "train.parquet").read_text() == "mine"


def test_the_official_data_are_not_replaced_by_others(tmp_path, monkeypatch):
    """In a folder with the study's own list only the listed splits may be put."""
    (tmp_path / "sources.yaml").write_bytes((ROOT / "data" / "sources.yaml").read_bytes())
    path = squad_file(tmp_path / "train.json", ("q1", "Where?", ("Paris", 16)))
    with pytest.raises(UserError, match=r"1 questions, not those that .* lists as squad/train"):
        run(monkeypatch, "--train", path, "--output", tmp_path)
    assert not (tmp_path / "squad").exists()


def official_scores(predictions, file):
    """EM and F1 in percent as SQuAD v1.1's rules say: file > article > paragraph > question."""

    def words(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return [word for word in text.split() if word not in ("a", "an", "the")]

    exact = f1 = total = 0
    for article in file["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                total += 1
                if asked["id"] not in predictions:
                    continue
                ours, best = words(predictions[asked["id"]]), 0
                golds = [words(answer["text"]) for answer in asked["answers"]]
                for gold in golds:
                    same = sum((Counter(ours) & Counter(gold)).values())
                    if same:
                        precision, recall = same / len(ours), same / len(gold)
                        best = max(best, 2 * precision * recall / (precision + recall))
                exact, f1 = exact + (ours in golds), f1 + best
    return {"exact_match": 100 * exact / total, "f1": 100 * f1 / total}


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        # Worked by hand, by the rules of evaluate-v1.1.py.
        ("Denver Broncos", ["the Denver Broncos!"], 1, 1),
        ("24–10", ["24-10"], 0, 0),  # only ASCII punctuation goes: "24–10" is not "2410"
        ("a red and a blue one", ["red blue"], 0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("Theatre", ["atre"], 0, 0),  # an article is a word
        ("U.S.", ["us"], 1, 1),
        ("one two", ["two three", "one"], 0, 2 / 3),  # the best of the golds
        ("", ["x"], 0, 0),
        ("the", ["a"], 1, 0),  # nothing is left of both
    ],
)
def test_scores_worked_by_hand(prediction, golds, exact, f1):
    assert answer_scores(prediction, golds) == pytest.approx((exact, f1))


def test_answers_of_a_model_score_the_same_by_the_official_rules(tmp_path, monkeypatch):
    """A model answers imported questions; its JSON and the SQuAD file score as the record says."""
    asked = [
        (f"q{n}", f"{'Where' * (n % 2)} is {n}?", (a, CONTEXT.index(a)))
        for n, a in enumerate(
            ["Paris", "The tower is in Paris. Paris is in France.", "tower", "France", "in"]
        )
    ]
    path = squad_file(tmp_path / "dev.json", *asked)
    run(monkeypatch, "--validation", path, "--output", tmp_path / "own")
    DistilBERTForQuestionAnswering(create_model_config("tiny")).save_pretrained(
        tmp_path / "model", get_tokenizer()
    )
    command = [sys.executable, str(CODE / "evaluate_model.py"), "--task", "squad"]
    command += ["--checkpoint", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    environment = os.environ | {"DATA_DIR": str(tmp_path / "own"), "PYTHONPATH": str(CODE)}
    for _ in range(2):  # the second run takes the place of the first
        subprocess.run(command, env=environment, check=True, capture_output=True)
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert answers.keys() == {f"q{n}" for n in range(len(asked))}
    expected = official_scores(answers, json.loads(path.read_text()))
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [given["name"] for given in record["inputs"]] == ["weights:model"]
    assert [used["name"] for used in record["data"]] == ["own/squad/validation"]
    record = record["metrics"]["validation"]
    assert {n: 100 * record[n] for n in expected} == pytest.approx(expected)
    assert expected["f1"] > 0
    each = [answer_scores(answers[key], [answer]) for key, _, (answer, _) in asked]
    assert list(100 * np.mean(each, axis=0)) == pytest.approx(
        [expected[name] for name in ("exact_match", "f1")]
    )


def test_windows_that_are_too_short_are_one_line(tmp_path, monkeypatch, capsys):
    command = ["evaluate_model.py", "--checkpoint", "m", "--task", "squad", "--max-length", "100"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        evaluate_model.main()
    error = capsys.readouterr().err
    assert "error: --max-length: windows: stride 128 skips text" in error


def test_any_recipe_takes_questions():
    """The common max_length of quick is that of its sentences, not of a window."""
    quick = load_recipe("quick")
    assert quick.finetune_for("squad").max_length == 384
    assert quick.finetune_for("sentiment").max_length == quick.finetune.max_length == 128
