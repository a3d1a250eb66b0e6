"""Fine-tuning and evaluation by their command lines; labels by name."""

import os
import subprocess
import sys

import numpy as np
import pytest
import transformers

import evaluate_model
import finetune
from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.metrics import compute_metrics
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE
from distilbert_kit.settings import TextSettings
from distilbert_kit.study.inputs import given_scale, public_name
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record
from distilbert_kit.training.classification import label_order, load_task_split
from distilbert_kit.training.precision import usable_precision


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
    out = tmp_path / "out"
    run(evaluate_model, "--checkpoint", tmp_path / "m", "--task", "sentiment", "--output", out)
    found = read_record(out / "record.json").metrics["validation"]
    task = get_task("sentiment")
    _, table, _ = load_task_split(task, "validation", get_tokenizer(), TextSettings())
    classify = transformers.pipeline("text-classification", str(tmp_path / "m"), batch_size=50)
    predicted = [row["label"].lower() == "positive" for row in classify(table["sentence"][:])]
    expected = compute_metrics(("accuracy", "f1"), np.array(predicted, int), table["label"][:], 2)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_hub_name_is_resolved_once(tmp_path, run, monkeypatch):
    """The hub gives other weights from the second time on: record and scores are of the first."""
    for name in ("first", "later"):
        model = DistilBERTForSequenceClassification(create_model_config("tiny"), 2)
        model.save_pretrained(tmp_path / name, get_tokenizer())
    answers = iter(["first"])
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, **__: str(tmp_path / next(answers, "later")),
    )
    out, options = tmp_path / "out", ("--task", "sentiment")
    run(evaluate_model, "--checkpoint", "some/model", *options, "--output", out)
    found = read_record(out / "record.json")
    run(evaluate_model, "--checkpoint", tmp_path / "first", *options, "--output", out)
    expected = read_record(out / "record.json")
    assert found.inputs[0].content == expected.inputs[0].content
    assert found.metrics == expected.metrics
    with pytest.raises(StopIteration):
        next(answers)
    first = resolve_checkpoint(tmp_path / "first")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    assert get_tokenizer("some/model", first).get_vocab() == get_tokenizer().get_vocab()


def test_weights_of_the_folder_one_stands_in_have_its_name(tmp_path, run, monkeypatch):
    model = DistilBERTForSequenceClassification(create_model_config("tiny"), 2)
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    monkeypatch.chdir(tmp_path / "m")
    out, options = tmp_path / "out", ("--task", "sentiment", "--precision", "auto")
    run(evaluate_model, "--checkpoint", ".", *options, "--output", out)
    record = read_record(out / "record.json")
    assert record.measured.extra["precision"] == usable_precision("auto")
    assert record.cell["checkpoint"] == "m" and record.inputs[0].name == "weights:m"
    names = {
        "minilm": "minilm",
        "an/other": "an/other",
        "../m/": "m",
        "/a/b": "b",
        "..": tmp_path.name,
    }
    assert {given: public_name(given) for given in names} == names


@pytest.mark.parametrize(
    ("model", "task", "scale"),
    [
        ("bert-base-uncased", "sst2", "paper"),
        ("distilbert-base-uncased", "squad", "paper"),
        ("mpnet-base", "sst2", "paper"),
        ("MiniLM-L6", "sst2", "reduced"),
        ("bert-base-uncased", "sentiment", "embedded"),
    ],
)
def test_the_scale_of_given_weights_is_that_of_model_and_data(model, task, scale):
    assert given_scale(create_model_config(model), get_task(task)) == scale


def test_labels_are_matched_by_name():
    mnli = get_task("mnli")
    assert label_order(("contradiction", "entailment", "neutral"), mnli, "m") == [1, 2, 0]
    assert label_order(("LABEL_0", "LABEL_1", "LABEL_2"), mnli, "m") == [0, 1, 2]
    with pytest.raises(UserError, match="has 2 labels, mnli has 3"):
        label_order(("a", "b"), mnli, "m")
    with pytest.raises(UserError, match="labels are a, b, c"):
        label_order(("a", "b", "c"), mnli, "m")


def test_untrained_head_and_unknown_names_are_one_line(tmp_path, run, capsys):
    out = ("--output", tmp_path / "out")
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


def test_evaluation_leaves_what_is_not_its_own(tmp_path, run, capsys):
    """Said before the model is loaded: there is none of this name."""
    (tmp_path / "validation.parquet").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        run(evaluate_model, "--checkpoint", "nobody", "--task", "squad", "--output", tmp_path)
    assert "holds 'validation.parquet', which this kit did not" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_an_evaluation_killed_before_its_end_is_repeated(tmp_path):
    """The predictions that it had written were taken for somebody else's."""
    model = DistilBERTForSequenceClassification(create_model_config("tiny"), 2)
    model.save_pretrained(tmp_path / "m", get_tokenizer())

    def evaluated(before=""):
        """Exit status, and the names of what is there, after a run with a line before it."""
        program = f"import os, evaluate_model\n{before}\nevaluate_model.main()"
        command = [sys.executable, "-c", program, "--task", "sentiment"]
        command += ["--checkpoint", str(tmp_path / "m"), "--output", str(tmp_path / "out")]
        environment = os.environ | {"PYTHONPATH": str(CODE)}
        status = subprocess.run(command, env=environment, capture_output=True).returncode
        return status, sorted(path.name for path in (tmp_path / "out").glob("*"))

    killed = "import distilbert_kit.study.records as r; r.write_record = lambda *_: os._exit(9)"
    assert evaluated(killed) == (9, [])
    assert evaluated() == (0, [".distilbert-kit.json", "record.json", "validation.parquet"])
    assert not list(tmp_path.glob("*.tmp"))
