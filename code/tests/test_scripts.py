"""Fine-tuning and evaluation by their command lines; labels by name."""

import numpy as np
import pytest
import transformers

import evaluate_model
import finetune
from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.metrics import compute_metrics
from distilbert_kit.models.checkpoints import get_tokenizer
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.settings import TextSettings
from distilbert_kit.study.inputs import public_name
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record
from distilbert_kit.training.classification import label_order, load_task_split


@pytest.fixture
def run(monkeypatch):
    """Runs a script's `main` with these arguments."""

    def run(script, *arguments):
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *map(str, arguments)])
        script.main()

    return run


@pytest.mark.parametrize("labels", [("negative", "positive"), ("POSITIVE", "NEGATIVE")])
def test_evaluation_equals_transformers_in_either_label_order(tmp_path, run, labels):
    model = DistilBERTForSequenceClassification(create_model_config("tiny"), 2, labels)
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    out = tmp_path / "record.json"
    run(evaluate_model, "--checkpoint", tmp_path / "m", "--task", "sentiment", "--out", out)
    found = read_record(out).metrics["validation"]
    task = get_task("sentiment")
    _, table, _ = load_task_split(task, "validation", get_tokenizer(), TextSettings())
    classify = transformers.pipeline("text-classification", str(tmp_path / "m"), batch_size=50)
    predicted = [row["label"].lower() == "positive" for row in classify(table["sentence"][:])]
    expected = compute_metrics(("accuracy", "f1"), np.array(predicted, int), table["label"][:], 2)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_weights_of_the_folder_one_stands_in_have_its_name(tmp_path, run, monkeypatch):
    model = DistilBERTForSequenceClassification(create_model_config("tiny"), 2)
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    monkeypatch.chdir(tmp_path / "m")
    out = tmp_path / "record.json"
    run(evaluate_model, "--checkpoint", ".", "--task", "sentiment", "--out", out)
    record = read_record(out)
    assert record.cell["checkpoint"] == "m" and record.inputs[0].name == "weights:m"
    names = {
        "minilm": "minilm",
        "an/other": "an/other",
        "../m/": "m",
        "/a/b": "b",
        "..": tmp_path.name,
    }
    assert {given: public_name(given) for given in names} == names


def test_labels_are_matched_by_name():
    mnli = get_task("mnli")
    assert label_order(("contradiction", "entailment", "neutral"), mnli, "m") == [1, 2, 0]
    assert label_order(("LABEL_0", "LABEL_1", "LABEL_2"), mnli, "m") == [0, 1, 2]
    with pytest.raises(UserError, match="has 2 labels, mnli has 3"):
        label_order(("a", "b"), mnli, "m")
    with pytest.raises(UserError, match="labels are a, b, c"):
        label_order(("a", "b", "c"), mnli, "m")


def test_untrained_head_and_unknown_names_are_one_line(tmp_path, run, capsys):
    out = ("--out", tmp_path / "record.json")
    with pytest.raises(SystemExit, match="2"):
        run(evaluate_model, "--checkpoint", "minilm", "--task", "sentiment", *out)
    assert "is not a trained" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        run(finetune, "--model", "nobody", "--task", "sentiment")
    known = ", ".join(load_recipe("quick").models)
    assert capsys.readouterr().err.splitlines() == [
        f"error: recipe quick has no model 'nobody': choose from {known}"
    ]


@pytest.mark.parametrize(
    ("given", "foreign", "message"),
    [
        ([], "record.validation.parquet", "record.validation.parquet: is there, and not one that"),
        (["--answers", "a.json"], "a.json", "a.json: is there, and not one that"),
        (["--answers", "record.json"], None, "another output has that name"),
    ],
)
def test_evaluation_leaves_what_is_not_its_own(
    tmp_path, monkeypatch, capsys, given, foreign, message
):
    """Said before the model is loaded: there is none of this name."""
    monkeypatch.chdir(tmp_path)
    if foreign:
        (tmp_path / foreign).write_text("mine")
    arguments = ["--checkpoint", "nobody", "--task", "squad", "--out", "record.json", *given]
    monkeypatch.setattr("sys.argv", ["evaluate_model.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        evaluate_model.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"] * bool(foreign)
