"""distill_csv.py and evaluate_csv.py on a small model and two easy classes."""

import contextlib
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, strategies as st
from sklearn.metrics import accuracy_score, f1_score

import distill_csv
import evaluate_csv
from distilbert_kit.data.csv import load_labelled_texts, split_texts
from distilbert_kit.data.tasks import get_task
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.hub_layout import read_config
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.serve.prediction import load_predictor
from distilbert_kit.settings import FinetuneSettings, SoftTargets
from distilbert_kit.study import csv_pipeline
from distilbert_kit.study.csv_pipeline import MODELS, accuracies, most_frequent, results_table
from distilbert_kit.study.records import read_record


def write_news(path, seed=0):
    """A CSV of two easy classes."""
    random = np.random.default_rng(seed)
    words = {"sport": ["goal", "match", "team"], "money": ["bank", "market", "price"]}
    rows = [
        {"Topic": label, "Body": " ".join(random.choice(words[label], 6))}
        for label in words
        for _ in range(80)
    ]
    pd.DataFrame(rows).to_csv(path, index=False, sep=";")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pipeline by its command line, on two easy classes and a tiny teacher."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    shape = create_model_config(
        "MiniLM-L6", num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64
    )
    DistilBERTForMaskedLM(shape).save_pretrained(folder / "teacher", get_tokenizer())
    write_news(folder / "news.csv")
    command = ["--csv", folder / "news.csv", "--teacher", folder / "teacher", "--epochs", 6]
    command += ["--learning-rate", 0.003, "--batch-size", 16, "--output", folder / "out"]
    command += ["--seeds", 0, 1, "--random-start"]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr("sys.argv", ["distill_csv.py", *map(str, command)])
        distill_csv.main()
    return folder / "out", said.getvalue()


def test_pipeline_leaves_models_cards_predictions_and_record(made):
    folder, output = made
    record = read_record(folder / "record.json")
    assert {used.name.split("/")[1]: used.rows for used in record.data} == {
        split: len(part) for split, part in split_again(folder).items()
    }
    predictions = pd.read_csv(folder / "predictions.csv")
    both, predictions = predictions, predictions[predictions["seed"] == 0]
    for name in MODELS:
        scores = record.metrics[name]["test"]
        assert scores["accuracy"] == accuracy_score(predictions["label"], predictions[name])
        f1 = f1_score(predictions["label"], predictions[name], pos_label="sport")
        assert scores["f1"] == pytest.approx(f1)
        card = ModelCard.load(folder / name / "README.md")
        values = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
        assert values["test", "accuracy"] == scores["accuracy"]
        assert {metric for _, metric in values} == {"accuracy", "precision", "recall", "f1"}
        assert card.data.library_name == ("onnx" if name.endswith("int8") else "transformers")
        config = json.loads((folder / name / "config.json").read_text())
        assert config["id2label"] == {"0": "money", "1": "sport"}
        assert str(folder) not in card.content
        assert "English" not in card.content and card.data.language is None  # texts of the user
        (place,) = re.findall("`([./]*record.json)`", card.content)
        assert (folder / name / place).resolve() == (folder / "record.json").resolve()
    assert str(folder) not in (folder / "record.json").read_text()
    (given,) = record.inputs
    assert given.name == "weights:teacher" and given.content.startswith("sha256:")
    columns = {"text_column": "Body", "label_column": "Topic", "drop_missing": False}
    assert columns | {"layers": [0], "random_start": True} == {
        name: record.settings[name] for name in (*columns, "layers", "random_start")
    }
    assert record.metrics["teacher"]["test"]["accuracy"] > 0.9
    sizes = [record.metrics[name]["size"]["bytes"] for name in MODELS]
    assert sizes[0] > sizes[1] == sizes[2] == sizes[4] > sizes[3]
    assert all(title in output for title in MODELS.values())
    accuracy = record.metrics["accuracy"]
    for name, found in accuracy.items():
        right = (both[name] == both["label"]).groupby(both["seed"]).mean()
        assert found["seeds"] == right.tolist() and len(right) == 2
        assert found["low"] <= found["estimate"] <= found["high"]
        assert found["estimate"] == pytest.approx(right.mean())
        if name != "student":
            gap = right.mean() - np.mean(accuracy["student"]["seeds"])
            assert found["over_student"]["estimate"] == pytest.approx(gap)


@given(st.integers(1, 5000), st.integers(1, 64))
def test_small_files_are_read_until_there_are_enough_updates(rows, batch_size):
    epochs, updates = distill_csv.enough_epochs(rows, batch_size), -(-rows // batch_size)
    assert epochs >= 2 and epochs * updates >= distill_csv.LEAST_UPDATES
    assert epochs == 2 or (epochs - 1) * updates < distill_csv.LEAST_UPDATES


def test_accuracies_are_in_the_order_of_the_seeds():
    answers = pd.DataFrame({"label": ["a"] * 4, "student": [*"aaab"], "seed": [7, 7, 0, 0]})
    assert accuracies(answers)["student"]["seeds"] == [1.0, 0.5]


def test_shares_of_few_texts_stay_shares():
    answers = pd.DataFrame(
        {"label": ["a"] * 8, "student": ["a"] * 8, "seed": [0, 0, 0, 0, 1, 1, 1, 1]}
    )
    answers["teacher"] = ["b"] + ["a"] * 7
    found = accuracies(answers)
    assert 0 <= found["teacher"]["low"] < 0.875 < found["teacher"]["high"] == 1
    # Nothing varies where all is right, but four texts show little.
    assert 0.5 < found["student"]["low"] < 0.52 and found["student"]["high"] == 1
    answers["student-int8"] = answers["student"]
    gap = accuracies(answers)["student-int8"]["over_student"]
    assert gap["low"] < gap["estimate"] == 0 < gap["high"]


def test_a_model_that_guesses_is_called_one(made):
    folder, output = made
    test = split_again(folder)["test"]
    assert most_frequent(test) == {"label": "sport", "share": 0.5}
    assert "50.00 % of the test rows are 'sport'" in output
    assert f"F1 is of {read_config(folder / 'teacher').labels[1]!r}" in output
    metrics = read_record(folder / "record.json").metrics
    bounds = {"estimate": 1.0, "low": 0.6}
    changed = {"student": {"estimate": 0.5, "low": 0.4}, "student-int8": {"low": 0.5}}
    for name, found in metrics["accuracy"].items():
        found |= {"seeds": [0.5]} | bounds | changed.get(name, {})
    times = dict.fromkeys(MODELS, 1.0)
    *_, guessing, unsure = results_table(metrics, times, ["sport", "trade"]).splitlines()
    assert guessing.startswith(f"no better than this answer alone: {MODELS['student']}. Raise")
    assert unsure == f"perhaps no better, more rows would tell: {MODELS['student-int8']}"


@pytest.mark.parametrize("name", ["student", "student-int8"])
def test_other_rows_are_scored_with_a_model_of_the_pipeline(made, name, tmp_path, monkeypatch):
    folder, _ = made
    write_news(tmp_path / "newer.csv", seed=1)
    with (tmp_path / "newer.csv").open("a") as file:
        file.write("money;goal match team goal match team\n")  # what is wrong counts
    output = tmp_path / "scores"
    command = ["--model", folder / name, "--csv", tmp_path / "newer.csv", "--output", output]
    monkeypatch.setattr("sys.argv", ["evaluate_csv.py", *map(str, command)])
    evaluate_csv.main()
    rows, record = pd.read_csv(output / "predictions.csv"), read_record(output / "record.json")
    assert len(rows) == 161 and record.metrics["most_frequent"]["label"] == "money"
    for metric, value in {
        "accuracy": accuracy_score(rows["label"], rows["prediction"]),
        "f1": f1_score(rows["label"], rows["prediction"], pos_label="sport"),
    }.items():
        assert record.metrics[metric] == pytest.approx(value)
    found = load_predictor(folder / name)(rows["text"].tolist())
    assert [row["label"] for row in found] == rows["prediction"].tolist()
    with (tmp_path / "newer.csv").open("a") as file:
        file.write("weather;sun\n")
    with pytest.raises(SystemExit):
        evaluate_csv.main()
    assert len(pd.read_csv(output / "predictions.csv")) == 161  # of the run before


@pytest.mark.parametrize(
    ("problem", "changes"),
    [
        ("none of the model's: money, sport", {}),
        ("gives a text no class, or several", {"problem_type": "multi_label_classification"}),
        ("gives a text no class", {"architectures": ["DistilBertForQuestionAnswering"]}),
    ],
)
def test_labels_that_the_model_does_not_know_are_refused(
    made, problem, changes, tmp_path, monkeypatch, capsys
):
    shutil.copytree(made[0] / "student", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | changes))
    for mark in (tmp_path / "model").glob(".distilbert-kit.json"):
        mark.unlink()
    (tmp_path / "new.csv").write_text("text,label\nsun,weather\nrain,weather\n")
    command = ["--model", "model", "--csv", "new.csv", "--output", "scores"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluate_csv.py", *command])
    with pytest.raises(SystemExit) as stopped:
        evaluate_csv.main()
    assert stopped.value.code == 2 and problem in capsys.readouterr().err
    assert not (tmp_path / "scores").exists()


def test_equal_answers_of_one_seed_still_leave_room():
    answers = pd.DataFrame({"label": ["a", "b"] * 50, "seed": 0})
    for name in ("student", "student-int8"):
        answers[name] = answers["label"]
    gap = accuracies(answers)["student-int8"]["over_student"]
    assert gap["low"] < gap["estimate"] == 0 < gap["high"]


def test_files_of_one_name_and_other_rows_are_other_results(made, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_csv, "make_models", lambda *given, seed, output, **options: None)
    monkeypatch.setattr(csv_pipeline, "load_models", lambda folder: {})
    monkeypatch.setattr(csv_pipeline, "latencies", lambda models, dataset: {})
    monkeypatch.setattr(distill_csv, "accuracies", lambda predictions: {})
    monkeypatch.setattr(distill_csv, "results_table", lambda metrics, times, labels: "")
    keys = []
    for seed in (0, 0, 1):
        write_news(tmp_path / "news.csv", seed)
        command = ["--csv", tmp_path / "news.csv", "--output", tmp_path / "out"]
        command += ["--teacher", made[0].parent / "teacher"]
        monkeypatch.setattr("sys.argv", ["distill_csv.py", *map(str, command)])
        distill_csv.main()
        keys.append(read_record(tmp_path / "out" / "record.json").key)
    assert keys[0] == keys[1] != keys[2]


def test_texts_are_cut_to_what_a_short_teacher_takes(tmp_path, monkeypatch, capsys):
    shape = create_model_config("bert-tiny", num_layers=2, max_position_embeddings=12)
    DistilBERTForMaskedLM(shape).save_pretrained(tmp_path / "teacher", get_tokenizer())
    write_news(tmp_path / "news.csv")
    command = ["--csv", tmp_path / "news.csv", "--teacher", tmp_path / "teacher", "--epochs", 1]
    command = ["distill_csv.py", *map(str, [*command, "--output", tmp_path / "out"])]
    monkeypatch.setattr("sys.argv", [*command, "--max-length", "13"])
    with pytest.raises(SystemExit, match="2"):
        distill_csv.main()
    assert "teacher: takes at most 12 tokens; lower max_length 13" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", command)
    distill_csv.main()
    assert read_record(tmp_path / "out" / "record.json").settings["max_length"] == 12
    shape = create_model_config("bert-tiny", num_layers=2, max_position_embeddings=4)
    DistilBERTForMaskedLM(shape).save_pretrained(tmp_path / "teacher", get_tokenizer())
    with pytest.raises(SystemExit, match="2"):
        distill_csv.main()
    assert "max_length 4: Input should be greater than or equal to 8" in capsys.readouterr().err


def test_logits_of_the_seed_before_do_not_ride_along(tmp_path, monkeypatch):
    dataset = SimpleNamespace(teacher_logits=np.ones(2))

    def begin(start, *, dataset, **_):
        raise InterruptedError(dataset.teacher_logits)

    monkeypatch.setattr(csv_pipeline, "fine_tune", begin)
    monkeypatch.setattr(csv_pipeline, "cut_student", lambda *_: None)
    settings = FinetuneSettings(epochs=1, learning_rate=1e-4, batch_size=8)
    given = (tmp_path, [0], dataset, get_task("sentiment"), settings, SoftTargets(), None)
    with pytest.raises(InterruptedError) as begun:
        csv_pipeline.make_models(*given, seed=1, output=tmp_path)
    assert begun.value.args == (None,)


def split_again(folder):
    table = load_labelled_texts(folder.parent / "news.csv")
    return split_texts(table, 0)


def test_foreign_folder_and_bad_options_are_refused(made, monkeypatch, capsys):
    folder, _ = made
    (folder.parent / "other").mkdir(exist_ok=True)
    (folder.parent / "other" / "thesis.txt").write_text("mine")
    csv = str(folder.parent / "news.csv")
    for options, message in [
        (["--output", str(folder.parent / "other")], "holds 'thesis.txt', which this kit did not"),
        (["--output", csv], "a file; name a folder"),
        (["--output", "new", "--max-length", "4"], "--max-length 4"),
        (["--output", "new", "--soft-weight", "2"], "--soft-weight 2.0"),
        (["--output", "new", "--epochs", "0"], "--epochs 0.0"),
        (["--output", "new", "--layers", "99"], "cannot cut 99 layers from a teacher that has 6"),
        (["--output", "new", "--layers", "0,99"], "teacher layer 99 does not exist"),
        (["--output", "new", "--layers", "²"], "layers ²: use numbers such as 0,2,4"),
        (["--output", "new", "--epochs", "0", "--epoch"], "--help lists the options"),
        (["--output", "new", "--seeds", "0", "1", "0"], "--seeds: one of them is given twice"),
    ]:
        monkeypatch.setattr("sys.argv", ["distill_csv.py", "--csv", csv, *options])
        with pytest.raises(SystemExit) as stopped:
            distill_csv.main()
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_a_run_that_fails_leaves_the_one_before_and_its_inputs(made, monkeypatch, capsys):
    """They went as soon as the command was given, whether the CSV was mistyped or among them."""
    folder, _ = made
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for csv, message in [
        (folder.parent / "nothing.csv", "no such file"),
        (folder / "predictions.csv", "which this run reads"),
    ]:
        command = ["distill_csv.py", "--csv", str(csv), "--output", str(folder)]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as stopped:
            distill_csv.main()
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert {path.name for path in folder.parent.iterdir()} <= {
        "news.csv",
        "teacher",
        "out",
        "other",
    }


def test_a_file_of_the_users_with_a_name_of_ours_stays(tmp_path, monkeypatch, capsys):
    (tmp_path / "predictions.csv").write_text("mine")
    command = ["distill_csv.py", "--csv", "nothing.csv", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        distill_csv.main()
    assert "predictions.csv" in capsys.readouterr().err
    assert (tmp_path / "predictions.csv").read_text() == "mine"
