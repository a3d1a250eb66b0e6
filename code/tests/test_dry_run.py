"""Every recipe runs through, from corpus and training to the records that its report reads."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from published import publish

import dry_run
from distilbert_kit.data import sources
from distilbert_kit.errors import UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.hub_layout import read_config
from distilbert_kit.models.model import DistilBERTModel
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, RECIPES
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import read_record

FILES = [*sorted(RECIPES.glob("*.yaml")), CODE / "examples" / "recipe.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_runs_through(file, tmp_path, monkeypatch, request):
    name = load_recipe(file).name
    command = [sys.executable, CODE / "dry_run.py", "--recipe", file, "--keep", tmp_path / "walk"]
    if (settings.get_current_profile_name(), name) != ("nightly", "base"):
        command.append("--only-cells")
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    results = tmp_path / "walk" / "results" / f"{name}-dry-run"
    small = load_recipe(tmp_path / "walk" / f"{name}-dry-run.yaml")
    cells = evidence_cells(small)
    for cell in cells:
        record = read_record(results / cell.stage / f"{cell.name}.json")
        assert (record.status, record.scale) == ("ok", "embedded")
        if cell.name == "shape_speed":  # the narrower one is of the small encoder too
            assert {row["width"] for row in record.metrics["shapes"].values()} == {12, 16}
    own = evidence_cells(load_recipe(file))
    walked = {(cell.stage, cell.identity.get("model")) for cell in cells}
    assert walked == {(cell.stage, cell.identity.get("model")) for cell in own}
    tasks = {cell.identity.get("task") for cell in own}
    assert {cell.identity.get("task") for cell in cells} == tasks
    if name == "base":  # on to notebooks, report and poster, from records that stages wrote
        walk = tmp_path / "walk"
        monkeypatch.setattr("distilbert_kit.study.recipes.RESULTS", walk / "results")
        monkeypatch.setattr(sources, "SOURCES", walk / "data" / "sources.yaml")

        def forget():
            sources.sources.cache_clear()
            sources.expected_split.cache_clear()

        forget()
        request.addfinalizer(forget)
        assert all(pdf.startswith(b"%PDF") for pdf in publish(small, monkeypatch).values())


def test_any_weights_of_a_recipe_have_a_stand_in(tmp_path):
    shape = create_model_config("tiny", vocab_size=len(get_tokenizer()))
    DistilBERTModel(shape).save_pretrained(tmp_path / "mine", get_tokenizer())
    for weights, layers in {
        str(tmp_path / "mine"): 2,
        "minilm": 6,
        "distilbert/distilbert-base-uncased@main": 6,
        "google-bert/bert-large-uncased": 12,
    }.items():
        shape = read_config(Path(dry_run.stand_in(weights, tmp_path / "weights"))).shape
        assert (shape.num_layers, shape.hidden_size) == (layers, 16)
        assert len(get_tokenizer(tmp_path / "weights")) == shape.vocab_size
    with pytest.raises(UserError, match="no such checkpoint folder"):
        dry_run.stand_in("./absent", tmp_path / "weights")


def test_dry_run_writes_over_nothing(tmp_path):
    (tmp_path / "texts.txt").write_text("mine")
    command = [sys.executable, CODE / "dry_run.py", "--keep", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "holds 'texts.txt'" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_dry_run_says_what_is_wrong_with_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nmodles: {}\n")
    command = [sys.executable, CODE / "dry_run.py", "--recipe", tmp_path / "mine.yaml"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: mine.yaml: ") and run.stderr.count("\n") == 1
