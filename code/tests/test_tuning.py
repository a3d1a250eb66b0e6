"""Learning rates are chosen on training rows that were held out, before any dev set is read."""

import numpy as np
import pytest
import yaml

import tune
from distilbert_kit.data.batches import ClassificationDataset
from distilbert_kit.errors import UserError
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import RECIPES
from distilbert_kit.study import recipes
from distilbert_kit.study.cells import (
    cells_to_run,
    evidence_cells,
    finetune_cell,
    model_cell,
    tuning_cells,
)
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import recording
from distilbert_kit.study.tuning import held_out_scores, tuned_settings, tuning_rows

RATES = [1e-5, 1e-4]
COMPARED = {"models": ["teacher", "undistilled"], "tasks": ["sentiment"], "fraction": 0.25}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes quick, with the key `tuning` and changes, as a recipe of its own."""
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")

    def write(**changes):
        content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
        tuning = {"learning_rates": RATES, "tasks": ["sentiment"]}
        content |= {"name": "tuned", "tuning": tuning} | changes
        path = tmp_path / "tuned.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_recipe(path)

    return write


def put_record(cell, score):
    """A record of a trial, with the fields that the choice reads."""
    with recording(cell.record, **cell.provenance) as draft:
        draft.metrics = {"held_out": {"score": score, "rows": 40}}


def test_rows_held_out_are_not_trained_on():
    kept, held_out = tune.held_out_rows(103, 0.1, seed=0)
    assert len(held_out) == 10 and sorted([*kept, *held_out]) == list(range(103))
    again = tune.held_out_rows(103, 0.1, seed=0)
    assert np.array_equal(held_out, again[1])
    assert not np.array_equal(held_out, tune.held_out_rows(103, 0.1, seed=1)[1])
    with pytest.raises(UserError, match="leaves none on one side"):
        tune.held_out_rows(4, 0.1, seed=0)


def test_selected_examples_are_those_of_the_rows():
    texts, labels = ["one", "two words", "and three words"], [0, 1, 2]
    whole = ClassificationDataset(texts, labels, get_tokenizer())
    chosen = whole.select(np.array([2, 0]))
    assert [chosen[i] for i in range(2)] == [whole[2], whole[0]]
    assert chosen.lengths.tolist() == [5, 3] and len(whole) == 3


def test_the_rate_with_the_best_held_out_score_is_taken(write):
    recipe = write()
    cells = tuning_cells(recipe, "teacher")
    assert [cell.identity["learning_rate"] for cell in cells] == RATES
    assert {cell.data for cell in cells} == {(("embedded/sentiment", "train"),)}
    with pytest.raises(UserError, match=r"missing or not current; run python code/tune\.py"):
        tuned_settings(recipe, "teacher", "sentiment")
    for cell, score in zip(cells, (0.8, 0.7)):
        put_record(cell, score)
    assert tuned_settings(recipe, "teacher", "sentiment").learning_rate == 1e-5
    put_record(cells[1], 0.9)
    assert tuned_settings(recipe, "teacher", "sentiment").learning_rate == 1e-4
    assert [row["chosen"] for row in tuning_rows(recipe)] == [False, True]
    assert all(row["model"] == "teacher" for row in tuning_rows(recipe))


def test_a_rate_that_diverges_is_recorded_and_not_chosen(write, tmp_path, monkeypatch, capsys):
    model = DistilBERTForMaskedLM(create_model_config("tiny"))
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    recipe = write(
        models={"tiny": {"label": "t", "weights": str(tmp_path / "m")}},
        teacher="tiny",
        student="tiny",
        demo=[],
        tuning={"learning_rates": [1e30, 1e-5], "tasks": ["sentiment"]},
    )
    diverging, usual = tuning_cells(recipe, "tiny")
    monkeypatch.setattr("sys.argv", diverging.command[1:])
    tune.main()
    assert "tiny-sentiment-1e+30: the loss is not finite at update" in capsys.readouterr().out
    held_out = diverging.read_record().metrics["held_out"]
    assert (held_out["score"], held_out["diverged"]) == (0.0, True) and held_out["rows"] > 0
    assert diverging.is_recorded() and not diverging.checkpoints.exists()
    put_record(usual, 0.5)
    assert tuned_settings(recipe, "tiny", "sentiment").learning_rate == 1e-5


def test_texts_longer_than_the_model_takes_are_refused_before_the_training(
    write, tmp_path, monkeypatch
):
    model = DistilBERTForMaskedLM(create_model_config("tiny", max_position_embeddings=127))
    model.save_pretrained(tmp_path / "m", get_tokenizer())
    models = {"tiny": {"label": "t", "weights": str(tmp_path / "m")}}
    recipe = write(models=models, teacher="tiny", student="tiny", demo=[])
    monkeypatch.setattr("sys.argv", tuning_cells(recipe, "tiny")[0].command[1:])
    with pytest.raises(UserError, match="model tiny: takes at most 127 tokens; lower max_length"):
        tune.main.__wrapped__()


def test_a_rate_of_many_digits_is_the_one_that_its_command_names(write):
    recipe = write(tuning={"learning_rates": [1e-5, 3.3333333e-5], "tasks": ["sentiment"]})
    _, cell = tuning_cells(recipe, "teacher")
    assert float(cell.command[-1]) == cell.identity["learning_rate"] == 3.3333333e-5
    assert cell.name == "teacher-sentiment-3.33333e-05"


def test_another_grid_makes_fine_tuning_stale(write):
    first, other = write(), write(tuning={"learning_rates": [1e-5, 3e-4], "tasks": ["sentiment"]})
    keys = [finetune_cell(recipe, "teacher", "sentiment", 0).key for recipe in (first, other)]
    assert keys[0] != keys[1]
    for cell in tuning_cells(first, "teacher"):
        put_record(cell, 0.5)
    with pytest.raises(UserError, match="not current"):
        tuned_settings(other, "teacher", "sentiment")


def test_trials_come_before_fine_tuning(write):
    recipe = write()
    cells = cells_to_run(recipe)
    fine_tuning = [cell for cell in cells.values() if cell.stage == "finetune"]
    assert fine_tuning
    for cell in fine_tuning:
        trials = [parent for parent in cell.parents if parent.stage == "tune"]
        assert len(trials) == len(RATES) and all(trial.key in cells for trial in trials)
        made = model_cell(recipe, cell.identity["model"]).key  # a trial of other weights is stale
        assert [[parent.key for parent in trial.parents] for trial in trials] == 2 * [[made]]


def test_settings_are_the_same_for_all_models_and_seeds_go_by_task(write):
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content["models"]["teacher"]["finetune"] = {"learning_rate": 3e-5}
    with pytest.raises(UserError, match=r"unknown key 'models\.teacher\.finetune'"):
        write(tuning=None, models=content["models"])
    recipe = write(tuning=None, task_seeds={"sentiment": [3, 4]})
    assert tuned_settings(recipe, "teacher", "sentiment").learning_rate == 1e-4
    cells = [cell for cell in cells_to_run(recipe).values() if cell.stage == "finetune"]
    assert {cell.identity["seed"] for cell in cells} == {3, 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_seeds": {"rte": [0]}}, "task_seeds: 'rte' is not among the tasks"),
        ({"macro": ["rte"]}, "macro: 'rte' is not among the tasks"),
        ({"tuning": {"learning_rates": RATES, "tasks": ["squad"]}}, "'squad' is no classification"),
        ({"tuning": {"learning_rates": [1e-5], "tasks": ["sentiment"]}}, "learning_rates"),
        ({"held_out": COMPARED}, "held_out: the trials of the key tuning are such a comparison"),
        ({"tuning": None, "held_out": COMPARED | {"models": ["teacher", "x"]}}, "'x' is not among"),
        ({"tuning": None, "held_out": COMPARED | {"tasks": ["squad"]}}, "'squad' is no class"),
    ],
)
def test_wrong_keys_are_told(write, changes, message):
    with pytest.raises(UserError, match=message):
        write(**changes)


def test_models_are_compared_at_the_rate_of_fine_tuning_which_waits_for_none(write):
    recipe, plain = write(tuning=None, held_out=COMPARED), write(tuning=None)
    trials = [cell for cell in evidence_cells(recipe) if cell.stage == "tune"]
    assert [cell.identity["model"] for cell in trials] == COMPARED["models"]
    rate = recipe.finetune_for("sentiment").learning_rate
    for cell in trials:
        made = model_cell(recipe, cell.identity["model"])
        assert cell.identity["learning_rate"] == rate and cell.settings["held_out"] == 0.25
        assert cell.parents == ((made,) if made else ())
    keys = [finetune_cell(r, "teacher", "sentiment", 0).key for r in (recipe, plain)]
    assert keys[0] == keys[1]
    assert held_out_scores(recipe) == []
    put_record(trials[1], 0.75)
    assert held_out_scores(recipe) == [
        {"model": "undistilled", "task": "sentiment", "score": 0.75, "rows": 40}
    ]


def test_base_tunes_all_models_alike_and_keeps_wnli_apart():
    recipe = load_recipe("base")
    assert "wnli" in recipe.tasks and "wnli" not in recipe.macro_tasks
    models = recipe.models_of("cola")
    grids = [[cell.identity["learning_rate"] for cell in tuning_cells(recipe, m)] for m in models]
    assert {"teacher", "undistilled", "distilled", "masked_lm_only"} <= set(models)
    assert len(grids[0]) > 1 and all(grid == grids[0] for grid in grids)
    assert len(recipe.seeds_of("teacher", "rte")) == 5
    assert len(recipe.seeds_of("teacher", "sst2")) == 3
