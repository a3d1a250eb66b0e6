"""SQuAD: scores of known answers, and the whole way by the command line to the evidence."""

import dataclasses
import re
import string
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from test_question_answering import DEV, SQUAD, TOKENIZER, toy_rows

import evaluate_model
import finetune
from distilbert_kit.data import tables as data
from distilbert_kit.data.sources import rows_sha256
from distilbert_kit.errors import UserError
from distilbert_kit.metrics import answer_scores
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM, DistilBERTForQuestionAnswering
from distilbert_kit.paths import DATA, RECIPES
from distilbert_kit.settings import WindowSettings
from distilbert_kit.study import cell as cell_module, recipes
from distilbert_kit.study.cells import finetune_cell
from distilbert_kit.study.evidence import comparisons, lost, scores
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record
from distilbert_kit.study.task_metric import TaskMetric
from distilbert_kit.training.question_answering import (
    load_question_split,
)


def naive_scores(prediction, golds):
    """Exact match and F1 by the rules of SQuAD v1.1, word by word."""

    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [w for w in re.split(r"\s+", re.sub(r"\b(a|an|the)\b", " ", kept)) if w]

    exact, best = 0.0, 0.0
    for gold in golds:
        ours, theirs = words(prediction), words(gold)
        exact = max(exact, float(ours == theirs))
        left, shared = list(theirs), 0
        for word in ours:
            if word in left:
                left.remove(word)
                shared += 1
        if shared:
            precision, recall = shared / len(ours), shared / len(theirs)
            best = max(best, 2 * precision * recall / (precision + recall))
    return exact, best


@pytest.mark.skipif(
    not (DATA / "squad" / "validation.parquet").is_file(), reason="needs SQuAD in DATA_DIR"
)
def test_scores_of_known_answers_on_the_whole_dev_set():
    table = pd.read_parquet(DATA / "squad" / "validation.parquet")
    golds = {row.id: list(row.answers["text"]) for row in table.itertuples()}
    # An answer of articles alone has no words left, and then F1 is 0 by the official rules.
    longest = {key: max(texts, key=len) for key, texts in golds.items()}
    metric = TaskMetric(config_name="squad", keep_in_memory=True)
    references = list(golds.values())
    perfect = metric.compute(predictions=list(longest.values()), references=references)
    assert perfect == {"exact_match": 1.0, "f1": 1.0}
    changes = (
        str.upper,
        lambda text: f"The {text}.",
        lambda text: f"{text} today",
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: " ".join(text.split()[::-1]),
    )
    perturbed = {k: changes[i % 6](texts[0]) for i, (k, texts) in enumerate(golds.items())}
    expected = [naive_scores(perturbed[key], texts) for key, texts in golds.items()]
    each = [answer_scores(perturbed[key], texts) for key, texts in golds.items()]
    np.testing.assert_allclose(each, expected)
    found = metric.compute(predictions=list(perturbed.values()), references=references)
    assert tuple(found.values()) == pytest.approx(tuple(np.mean(expected, axis=0)))
    assert 0.3 < found["exact_match"] < found["f1"] < 0.9


@pytest.fixture
def small_squad(tmp_path, monkeypatch):
    """A SQuAD of a few rows in place of the real one, and a recipe that runs it."""
    splits = {
        "train_subset4000": toy_rows(24, 1, people=2),
        "validation": toy_rows(DEV, 2, people=2),
    }
    splits["train_subset4000"][5]["answers"] = {"text": ["Rome"], "answer_start": [1]}
    splits["validation"][3]["answers"]["text"].append("nowhere at all")
    folder = tmp_path / "data" / "squad"
    folder.mkdir(parents=True)
    listed = {}
    for split, rows in splits.items():
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
        listed["squad", split] = {"rows": len(rows), "sha256": rows_sha256(rows)}
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    for module in (data, cell_module):
        monkeypatch.setattr(module, "expected_split", lambda *split: listed[split])
    bert = create_model_config(
        "bert-base-uncased", hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2
    )
    for name in ("teacher", "student"):
        DistilBERTForMaskedLM(bert).save_pretrained(tmp_path / name, TOKENIZER)
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content |= {
        "name": "tiny",
        "seeds": [0, 1],
        "demo": [],
        "models": {
            "teacher": {"label": "t", "weights": str(tmp_path / "teacher")},
            "student": {"label": "s", "weights": str(tmp_path / "student")},
            "second_step": {
                "label": "second step",
                "task_distill": {"student": "student", "teacher": "teacher"},
            },
        },
        "student": "student",
        "tasks": ["squad"],
        "finetune": content["finetune"] | {"epochs": 6, "learning_rate": 0.01, "precision": "fp32"},
        "finetune_tasks": {
            "squad": {
                "train_split": "train_subset4000",
                "max_length": 16,
                "stride": 5,
                "question_length": 8,
                "answer_length": 1,
                "batch_size": 8,
            }
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main.__wrapped__()


def test_commands_records_and_evidence(small_squad, monkeypatch, tmp_path):
    recipe = load_recipe(small_squad)
    cells = [finetune_cell(recipe, m, "squad", s) for m in recipe.models for s in recipe.seeds]
    for cell in cells:
        run(monkeypatch, finetune, *cell.command[2:])
        assert cell.is_recorded()
    first = read_record(cells[0].record)
    assert [used.name for used in first.data] == ["squad/train_subset4000", "squad/validation"]
    assert first.metrics["train_dropped"] == 1 and first.settings["stride"] == 5
    assert first.metrics["train_windows"] == 46
    frame = pd.read_parquet(cells[0].predictions("validation"))
    assert frame["id"].tolist() == [f"q{i}" for i in range(DEV)]
    golds = {row["id"]: row["answers"]["text"] for row in toy_rows(DEV, 2, people=2)}
    golds["q3"].append("nowhere at all")
    each = [answer_scores(row.prediction, golds[row.id]) for row in frame.itertuples()]
    expected = dict(zip(("exact_match", "f1"), np.mean(each, axis=0)))
    found = {name: first.metrics["validation"][name] for name in expected}
    assert found == pytest.approx(expected)
    assert frame[["exact_match", "f1"]].mean().to_dict() == pytest.approx(expected)
    soft = read_record(finetune_cell(recipe, "second_step", "squad", 1).record)
    assert soft.metrics["history"][-1]["soft"] >= 0
    # evidence: scores over seeds and examples, paired comparison, retention, by the same functions
    rows = {(row["model"], row["metric"]): row for row in scores.score_rows(recipe)}
    assert len(rows) == 6 and rows["teacher", "exact_match"]["primary"]
    for (name, metric), row in rows.items():
        recorded = [
            read_record(finetune_cell(recipe, name, "squad", seed).record).metrics["validation"]
            for seed in recipe.seeds
        ]
        assert row["values"] == pytest.approx([values[metric] for values in recorded])
        assert row["interval"]["estimate"] == pytest.approx(np.mean(row["values"]))
    (row,) = comparisons.compare(recipe, "second_step", "teacher")
    gap = np.subtract(*(rows[name, "exact_match"]["values"] for name in ("second_step", "teacher")))
    assert row["gap"]["estimate"] == pytest.approx(gap.mean())
    assert scores.confusion_rows(recipe) == lost.error_rows(recipe) == []
    # the saved teacher, evaluated by itself with the same windows, gives the same answers
    arguments = ("--checkpoint", cells[0].folder, "--task", "squad", "--output", tmp_path / "e")
    limits = WindowSettings(max_length=16, stride=5, question_length=8, answer_length=1)
    kind = dataclasses.replace(evaluate_model.KINDS["question_answering"], texts=lambda: limits)
    monkeypatch.setitem(evaluate_model.KINDS, "question_answering", kind)
    run(monkeypatch, evaluate_model, *arguments)
    again = pd.read_parquet(tmp_path / "e" / "validation.parquet")
    pd.testing.assert_frame_equal(again, frame)


def test_windows_of_a_recipe_are_checked(small_squad):
    content = yaml.safe_load(small_squad.read_text())
    content["finetune_tasks"]["squad"] |= {"max_length": 128, "stride": 128}
    small_squad.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="stride 128 skips text"):
        load_recipe(small_squad)


def test_windows_are_as_long_as_a_short_model_takes(small_squad, monkeypatch, tmp_path):
    shape = create_model_config("tiny", max_position_embeddings=100)
    DistilBERTForQuestionAnswering(shape).save_pretrained(tmp_path / "short", TOKENIZER)
    command = ("--checkpoint", tmp_path / "short", "--task", "squad", "--output", tmp_path / "e")
    with pytest.raises(UserError, match="short: takes at most 100 tokens; lower max_length 200"):
        run(monkeypatch, evaluate_model, *command, "--max-length", 200)
    assert not (tmp_path / "e").exists()
    run(monkeypatch, evaluate_model, *command)
    settings = read_record(tmp_path / "e" / "record.json").settings
    assert (settings["max_length"], settings["stride"]) == (100, (100 - 64 - 3) // 2)
    DistilBERTForMaskedLM(shape).save_pretrained(tmp_path / "student", TOKENIZER)
    content = yaml.safe_load(small_squad.read_text())
    content["finetune_tasks"]["squad"]["max_length"] = 101
    small_squad.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="model student: takes at most 100 tokens; lower"):
        command = ("--recipe", small_squad, "--model", "student", "--task", "squad")
        run(monkeypatch, finetune, *command)


def test_rows_that_cannot_be_used_are_named(small_squad, tmp_path):
    path = tmp_path / "data" / "squad" / "validation.parquet"

    def load(**changes):
        rows = toy_rows(DEV, 2, people=2)
        rows[7] |= changes
        pd.DataFrame(rows).to_parquet(path)
        data.expected_split("squad", "validation")["sha256"] = rows_sha256(rows)
        return load_question_split(SQUAD, "validation", TOKENIZER, WindowSettings())

    assert len(load()[0]) == DEV
    for changes, words in (
        ({"answers": {"text": [], "answer_start": []}}, "row 8 has no gold answer"),
        ({"question": ""}, "row 8 has an empty question"),
        ({"context": " "}, "row 8 has an empty context"),
        ({"context": None}, "row 8 has an empty context"),
    ):
        with pytest.raises(UserError, match=words):
            load(**changes)
