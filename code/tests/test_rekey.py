"""Records of schema 1 are carried over where all their inputs are provably the same, else left."""

import json
import sys

import pytest
import yaml

import rekey
from distilbert_kit.files import content_key
from distilbert_kit.paths import RECIPES
from distilbert_kit.study import recipes
from distilbert_kit.study.cell import STAGE_VERSIONS
from distilbert_kit.study.cells import finetune_cell, model_cell
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record, recording


def old_record(cell, parents=(), settings=None, bf16=True):
    """The record of a cell as schema 1 had it; returns its key."""
    settings = settings or cell.settings
    hashes = [rekey.expected_split(*split)["sha256"] for split in cell.data]
    key = content_key([cell.stage, cell.identity, settings, list(parents), hashes])
    with recording(cell.record, **cell.provenance | {"key": key, "settings": settings}) as draft:
        draft.metrics = {"accuracy": 0.5}
    content = json.loads(cell.record.read_text()) | {"schema_version": 1}
    del content["inputs"], content["stage_version"], content["outputs"], content["sha256"]
    content["measured"]["machine"]["bf16_instructions"] = bf16
    cell.record.write_text(json.dumps(content))
    for path in cell.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return key


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """MiniLM and a cut of it, fine-tuned on the embedded task."""
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content |= {
        "name": "tiny",
        "models": {
            "teacher": {"label": "t", "weights": "minilm"},
            "cut": {"label": "c", "extract": {"teacher": "teacher", "layers": [0, 2]}},
        },
        "teacher": "teacher",
        "student": "cut",
    }
    for key in ("corpus", "pretrain", "distill", "demo"):
        del content[key]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path)


def run(monkeypatch, capsys, recipe):
    monkeypatch.setattr(sys, "argv", ["rekey.py", "--recipe", recipe.argument])
    rekey.main()
    return capsys.readouterr().out


def bf16_settings(cell):
    return cell.settings | {"precision": "bf16"}


def test_proven_records_are_carried_over_and_say_so(recipe, monkeypatch, capsys):
    cut, tuned = model_cell(recipe, "cut"), finetune_cell(recipe, "cut", "sentiment", 0)
    cut_key = old_record(cut)
    tuned_key = old_record(tuned, [cut_key], bf16_settings(tuned))
    assert not cut.is_recorded() and not tuned.is_recorded()
    assert "2 records carried over" in run(monkeypatch, capsys, recipe)
    assert cut.is_recorded() and tuned.is_recorded()
    record = read_record(tuned.record)
    assert record.measured.extra == {"rekeyed_from": tuned_key, "precision": "bf16"}
    assert record.metrics == {"accuracy": 0.5} and record.settings == tuned.settings
    assert read_record(cut.record).inputs[0].name == "weights:minilm"
    before = tuned.record.read_bytes()
    assert "0 records carried over" in run(monkeypatch, capsys, recipe)
    assert tuned.record.read_bytes() == before


def test_what_is_not_proven_is_left(recipe, monkeypatch, capsys):
    cut = model_cell(recipe, "cut")
    first, second = (finetune_cell(recipe, name, "sentiment", 0) for name in ("teacher", "cut"))
    old_record(cut, settings=cut.settings | {"layers": [1, 3]})
    old_record(first, settings=bf16_settings(first), bf16=False)  # auto is fp32 there
    old_record(second, ["a parent of before"])
    kept = [cell.record.read_bytes() for cell in (cut, first, second)]
    output = run(monkeypatch, capsys, recipe)
    assert "extract/cut: the recipe has other settings" in output
    assert "finetune/teacher-sentiment-0: the recipe has other settings" in output
    assert "finetune/cut-sentiment-0: a parent is stale" in output
    assert kept == [cell.record.read_bytes() for cell in (cut, first, second)]


def test_altered_records_and_other_meanings_are_left(recipe, monkeypatch, capsys):
    cut, tuned = model_cell(recipe, "cut"), finetune_cell(recipe, "cut", "sentiment", 0)
    key = old_record(cut)
    old_record(tuned, [key])
    content = json.loads(tuned.record.read_text())
    content["settings"]["learning_rate"] = 1.0  # not what its key says
    tuned.record.write_text(json.dumps(content))
    assert "not those of its key" in run(monkeypatch, capsys, recipe)
    cut.record.unlink()
    old_record(cut)
    monkeypatch.setitem(STAGE_VERSIONS, "extract", 2)
    assert "another meaning" in run(monkeypatch, capsys, recipe)
