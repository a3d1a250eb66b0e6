"""Fine-tuned models on other tasks with the same labels, against transformers' pipeline."""

import pandas as pd
import pytest
import torch
import transformers
import yaml

import cross_evaluate
from distilbert_kit.data import tables as data
from distilbert_kit.data.sources import rows_sha256
from distilbert_kit.data.tasks import get_task
from distilbert_kit.errors import UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import RECIPES
from distilbert_kit.study import cell as cell_module, recipes
from distilbert_kit.study.cells import cross_evaluation_cell, evidence_cells, finetune_cell
from distilbert_kit.study.drawings import language as draw
from distilbert_kit.study.evidence.lost import cross_rows
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record, recording

WORDS = ["the", "film", "was", "good", "and", "a", "dull", "plot", "of", "no", "use", "fine"]
CROSS = {"models": ["teacher"], "tasks": ["rte", "sst2"], "tested_on": ["wnli"]}


def pairs(task, count=30):
    """Pairs of one meaning for every task; RTE's class 0 is WNLI's class 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(WORDS), (count, 8), generator=generator)
    texts = [" ".join(WORDS[i] for i in row) for row in drawn]
    follows = [("entailment", "not_entailment")[number % 3 == 0] for number in range(count)]
    labels = get_task(task).labels
    if task == "sst2":
        return [{"sentence": text, "label": n % 2} for n, text in enumerate(texts)]
    return [
        {"sentence1": text, "sentence2": text[:20], "label": labels.index(name)}
        for text, name in zip(texts, follows)
    ]


def load(folder, cross, **changes):
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content |= {"name": "tiny", "tasks": ["rte", "sst2"], "cross_evaluation": cross}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return load_recipe(path)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Made-up RTE, WNLI and SST-2, and a random model "fine-tuned" on RTE and SST-2."""
    listed = {}
    for name in ("rte", "wnli", "sst2"):
        rows = pairs(name)
        path = tmp_path / "data" / get_task(name).dataset / "validation.parquet"
        path.parent.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(path)
        listed |= {
            (get_task(name).dataset, split): {"rows": len(rows), "sha256": rows_sha256(rows)}
            for split in ("train", "validation")
        }
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    for module in (data, cell_module):
        monkeypatch.setattr(module, "expected_split", lambda *split: listed[split])
    recipe = load(tmp_path, CROSS)
    bert = create_model_config(
        "bert-base-uncased", hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2
    )
    for name in ("rte", "sst2"):
        model = DistilBERTForSequenceClassification(bert, 2, get_task(name).labels)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        cell = finetune_cell(recipe, "teacher", name, 0)
        with recording(cell.record, **cell.provenance):
            model.save_pretrained(cell.folder, get_tokenizer())
        cell.stamp_folder()
    return recipe


def run(monkeypatch, recipe, model):
    monkeypatch.setattr(
        "sys.argv", ["cross_evaluate.py", "--recipe", recipe.argument, "--model", model]
    )
    cross_evaluate.main()


def check_drawing(panel, rows):
    """Every score, over that of guessing, stands where its two tasks meet."""
    trained = [label.get_text() for label in panel.get_yticklabels()]
    tested = [label.get_text().split("\n")[0] for label in panel.get_xticklabels()]
    found = {}
    for text in panel.texts:
        x, y = map(round, text.get_position())
        found.setdefault((trained[y], tested[x]), []).append(text.get_text())
    assert found == {
        tuple(get_task(name).title for name in key): [
            f"{100 * row['score']:.1f}",
            f"{100 * row['guessing']:.1f}",
        ]
        for key, row in rows.items()
    }


def test_classes_are_matched_by_name_and_other_labels_left_out(recipe, monkeypatch):
    run(monkeypatch, recipe, "teacher")
    cell = cross_evaluation_cell(recipe, "teacher")
    record = read_record(cell.record)
    assert cell.is_recorded() and {used.rows for used in record.data} == {30}
    assert set(record.measured.extra["precision"]) == {"rte", "sst2", "wnli"}
    assert set(record.measured.extra["precision"].values()) <= {"bf16", "fp32"}
    assert {used.name for used in record.data} == {"/".join(split) for split in cell.data}
    shorter = load(recipe._file.parent, CROSS, finetune_tasks={"wnli": {"max_length": 64}})
    assert cross_evaluation_cell(shorter, "teacher").key != cell.key
    found = record.metrics
    assert {name: set(tests) for name, tests in found.items()} == {
        "rte": {"rte", "wnli"},
        "sst2": {"sst2"},
    }
    folder = finetune_cell(recipe, "teacher", "rte", 0).folder
    classify = transformers.pipeline("text-classification", str(folder))
    right = [
        classify({"text": row["sentence1"], "text_pair": row["sentence2"]})["label"]
        == get_task("rte").labels[row["label"]]
        for row in pairs("rte")
    ]
    assert 0 < sum(right) < 30
    for tested in ("rte", "wnli"):  # one meaning, opposite class numbers
        assert found["rte"][tested]["validation"]["accuracy"] == pytest.approx(sum(right) / 30)
    matrices = [found["rte"][t]["validation"]["confusion_matrix"] for t in ("rte", "wnli")]
    assert matrices[1] == [row[::-1] for row in matrices[0][::-1]]
    rows = {(row["trained_on"], row["tested_on"]): row for row in cross_rows(recipe)}
    assert rows["rte", "wnli"]["score"] == pytest.approx(sum(right) / 30)
    assert rows["rte", "wnli"]["guessing"] == pytest.approx(20 / 30)
    assert rows["sst2", "sst2"]["guessing"] == 0.5 and rows["sst2", "sst2"]["examples"] == 30
    check_drawing(draw.cross(recipe, list(rows.values())).axes[0], rows)


def test_weights_are_kept_for_it_and_missing_ones_named(recipe, monkeypatch, capsys):
    commands = {c.name: c.command for c in evidence_cells(recipe) if c.stage == "finetune"}
    kept = {name for name, command in commands.items() if "--save" in command}
    assert kept == {"teacher-rte-0", "teacher-sst2-0"}
    wider = load(recipe._file.parent, CROSS | {"models": ["undistilled"]})
    named = [("undistilled", "run python code/finetune.py"), ("nobody", "does not name")]
    for model, message in named:
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, wider, model)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not cross_evaluation_cell(wider, "undistilled").record.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["nobody"]}, "'nobody' is not among the models"),
        ({"tasks": ["wnli"]}, "'teacher' is not fine-tuned on 'wnli'"),
        ({"models": ["minilm"]}, "'minilm' is not fine-tuned on 'rte'"),
        ({"tested_on": ["stsb"]}, "no task has the labels of 'stsb'"),
        ({"tested_on": ["snli"]}, "no task 'snli'"),
    ],
)
def test_recipes_that_ask_for_the_impossible(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, CROSS | changes)


def test_label_spaces():
    shared = {
        (a, b)
        for a in (
            "sst2",
            "imdb",
            "sentiment",
            "rte",
            "qnli",
            "wnli",
            "cola",
            "mnli",
            "stsb",
            "squad",
        )
        for b in ("imdb", "qnli", "stsb")
        if get_task(a).shares_labels(get_task(b))
    }
    sentiment = {(name, "imdb") for name in ("sst2", "imdb", "sentiment")}
    entailment = {(name, "qnli") for name in ("rte", "qnli", "wnli")}
    assert shared == sentiment | entailment | {("stsb", "stsb")}
