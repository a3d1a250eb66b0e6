"""Recipes and the keys of their cells: what loads, what is refused, what decides a result."""

import copy
import dataclasses
import functools
import operator

import pytest
import yaml

from distilbert_kit.data.sources import expected_split
from distilbert_kit.errors import UserError
from distilbert_kit.paths import RECIPES
from distilbert_kit.study import cell as cell_module, cells as experiment, recipes
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import Input


def all_recipes():
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", all_recipes())
def test_recipes_load_and_expand(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    keys = [cell.key for cell in experiment.evidence_cells(recipe)]
    assert len(keys) == len(set(keys)) > 0


# A teacher, a student of it, a student of that one, and so on.
LINE = {"m0": {"label": "m", "weights": "minilm"}} | {
    f"m{n}": {"label": "m", "extract": {"teacher": f"m{n - 1}", "layers": [0]}}
    for n in range(1, 10)
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"finetune.learning_rat": 1},
            "unknown key 'finetune.learning_rat'; did you mean 'learning_rate'",
        ),
        (
            {"pretrain.checkpoint_evry": 1},
            "unknown key 'pretrain.checkpoint_evry'; did you mean 'checkpoint_every'",
        ),
        ({"task": ["sst2"]}, "unknown key 'task'; did you mean 'tasks'"),
        ({"stand_inn": 1}, "unknown key 'stand_inn'; remove it"),  # stand_in is of claims.yaml
        ({"finetune.epochs": "many"}, "finetune.epochs"),
        ({"finetune.epochs": -1}, "finetune.epochs"),
        ({"tasks": ["sst3"]}, "no task 'sst3'"),
        ({"student": "nobody"}, "not among the models"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 1, 1]}, "seeds: 1 stands there twice"),
        ({"seeds": [0, 0]}, "0 stands there twice"),
        ({"tasks": ["sentiment", "sentiment"]}, "'sentiment' stands there twice"),
        ({"task_seeds": {"sentiment": []}}, "task_seeds.sentiment"),
        ({"distill.betas": [0.9, 9.98]}, "distill.betas.1"),
        (
            {"models.distilled.distill.loss": {"ce": 0, "mlm": 0, "cos": 0}},
            "all weights of the loss are 0",
        ),
        (
            {"tuning": {"learning_rates": [1e-4, 1.0000001e-4], "tasks": ["sentiment"]}},
            "two are alike in their first six digits",
        ),
        ({"models.teacher.weights": "minilm"}, "give exactly one of weights, extract, pretrain"),
        ({"models.minilm.tasks": ["sst2"]}, "models.minilm: 'sst2' is not among the tasks"),
        (
            {"models.teacher-sentiment-0": {"label": "a name that a run has", "weights": "minilm"}},
            "the name of a run of 'teacher'",
        ),
        ({"models.teacher.seeds": [7]}, "models.teacher: seeds has none of those of sentiment"),
        ({"corpus": None}, "needs the keys corpus and distill"),
        ({"pretrain": None}, "needs the keys corpus and pretrain"),
        ({"distill": None}, "needs the keys corpus and distill"),
        ({"models": LINE, "teacher": "m0", "student": "m1"}, "more than 8 generations"),
    ],
)
def test_recipe_mistakes_are_named(tmp_path, change, message):
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert message in str(caught.value) and "mine.yaml" in str(caught.value)


def test_missing_recipe_lists_the_others():
    with pytest.raises(UserError, match="quick"):
        load_recipe("quik")


def test_key_follows_settings_parents_and_data(monkeypatch):
    recipe, name = load_recipe("quick"), "undistilled"
    cell = experiment.finetune_cell(recipe, name, "sentiment", 0)
    assert cell.key == experiment.finetune_cell(recipe, name, "sentiment", 0).key
    longer = recipe.model_copy(
        update={"finetune": recipe.finetune.model_copy(update={"epochs": 9.0})}
    )
    assert experiment.finetune_cell(longer, name, "sentiment", 0).key != cell.key
    other_seed = experiment.finetune_cell(recipe, name, "sentiment", 1)
    assert other_seed.key != cell.key
    spec = recipe.models[name]
    moved = spec.model_copy(
        update={"extract": spec.extract.model_copy(update={"layers": [1, 3, 5]})}
    )
    changed = recipe.model_copy(update={"models": recipe.models | {name: moved}})
    assert experiment.finetune_cell(changed, name, "sentiment", 0).key != cell.key
    changes = {
        "stage": "tune",
        "identity": {"model": "another"},
        "settings": {},
        "parents": (),
        "data": cell.data[1:],
        "inputs": (Input(name="weights:a", content="sha256:b"),),
    }
    for field, other in changes.items():
        assert dataclasses.replace(cell, **{field: other}).key != cell.key, field
    elsewhere = dataclasses.replace(cell, name="another", command=["true"], splits=())
    assert elsewhere.key == cell.key  # where it is written and how it is run decide nothing
    hashed = {"sha256": "0" * 64}  # as many rows with other words
    monkeypatch.setattr(cell_module, "expected_split", lambda *s: expected_split(*s) | hashed)
    assert dataclasses.replace(cell).key != cell.key


def numbers_in(content, *path):
    """Where the numbers and truth values of a recipe are, and what they are."""
    if isinstance(content, (dict, list)):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield from numbers_in(content[key], *path, key)
    elif isinstance(content, (bool, int, float)):
        yield path, content


def changed(content, path, value):
    """The recipe of a content with another value, still a valid one, at a path."""
    if isinstance(value, bool):
        other = not value
    else:
        other = value + 1 if isinstance(value, int) else value / 2 or 0.5
    content = copy.deepcopy(content)
    functools.reduce(operator.getitem, path[:-1], content)[path[-1]] = other
    return recipes.Recipe.model_validate(content)


def test_every_number_of_a_recipe_is_in_the_key_of_its_stage():
    """And what comes before that stage, or beside it, need not run again."""
    content = load_recipe("quick").model_dump(mode="json", exclude={"demo"})
    before = {c.key for c in experiment.evidence_cells(recipes.Recipe.model_validate(content))}
    for path, value in numbers_in(content):
        cells = experiment.evidence_cells(changed(content, path, value))
        stale = {cell.stage for cell in cells if cell.key not in before}
        first = {"speed": "benchmark", "seeds": "finetune"}.get(path[0], path[0])
        if path[0] == "models":
            first = path[2]
        elif path[0] == "corpus" and path[1] not in ("limit_tokens", "validation_fraction"):
            first = "pretrain"  # the text stays, its masks change
        assert first in stale, path
        alone = {"finetune", "benchmark"} & {first}
        assert stale == alone or not alone, path
        assert first != "distill" or stale == {"distill", "finetune"}, path


def test_benchmarks_follow_the_training_that_they_time():
    recipe = load_recipe("study")
    longer = recipe.finetune.model_copy(update={"epochs": 9.0})
    masked = recipe.corpus.model_copy(update={"mask_probability": 0.5})
    other = recipe.model_copy(update={"finetune": longer, "corpus": masked})
    stale = {
        stage
        for stage in experiment.benchmark_stages(recipe)
        if experiment.benchmark_cell(recipe, stage).key
        != experiment.benchmark_cell(other, stage).key
    }
    assert stale == {"training_speed", "distillation_speed"}


def test_the_speed_of_a_corpus_is_that_of_its_text(tmp_path):
    keys = set()
    for text in ("one\n", "two\n"):
        (tmp_path / "text.txt").write_text(text)
        content = load_recipe("study").model_dump(mode="json")
        content["corpus_speed"]["source"] = f"lines:{tmp_path / 'text.txt'}"
        recipe = recipes.Recipe.model_validate(content)
        keys.add(experiment.benchmark_cell(recipe, "corpus_speed").key)
    assert len(keys) == 2
