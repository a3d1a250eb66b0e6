"""Nothing is recorded under a wrong cause: stale checkpoints, parents, content and publication."""

import shutil
import sys

import pandas as pd
import pytest
import yaml
from test_claims import write_verdicts
from test_distillation import tiny_teacher

import distill
import extract_student
import finetune
import prepare_corpus
from distilbert_kit.corpus import text_sources
from distilbert_kit.data import tables
from distilbert_kit.data.grammar import build_sentiment
from distilbert_kit.data.sources import rows_sha256
from distilbert_kit.errors import UserError
from distilbert_kit.models.checkpoints import model_sha256
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, RECIPES, ROOT
from distilbert_kit.study import cell as cell_module, inputs, publication, recipes
from distilbert_kit.study.cells import (
    checkpoint,
    corpus_cell,
    evidence_cells,
    finetune_cell,
    model_cell,
)
from distilbert_kit.study.evidence import distillation
from distilbert_kit.study.inputs import open_recipe, pinned_source, pinned_weights
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import Record, read_record
from distilbert_kit.training import loop
from distilbert_kit.training.checkpointing import CHECKPOINT

TRAINING = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "precision": "fp32"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the recipe `tiny` with changes: dump.txt, a teacher, a student cut and distilled."""
    rows = [row["sentence"] for row in build_sentiment("train", 160)]
    lines = [". ".join(rows[i : i + 3]) for i in range(0, len(rows), 3)]
    (tmp_path / "dump.txt").write_text("\n".join(lines))
    tiny_teacher().save_pretrained(tmp_path / "source", get_tokenizer())
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")

    def write(layers=(0, 2), loss=None, **changes):
        content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
        distilled = {"teacher": "teacher", "student": "cut", "loss": loss or {}}
        content |= {
            "name": "tiny",
            "corpus": {
                "source": [f"lines:{tmp_path / 'dump.txt'}"],
                "validation_fraction": 0.2,
            },
            "distill": TRAINING | {"checkpoint_every": 2},
            "models": {
                "teacher": {"label": "t", "weights": str(tmp_path / "source")},
                "cut": {
                    "label": "c",
                    "extract": {"teacher": "teacher", "layers": list(layers)},
                },
                "distilled": {"label": "d", "distill": distilled},
            },
            "teacher": "teacher",
            "student": "distilled",
        }
        del content["pretrain"], content["demo"]
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


def run(monkeypatch, script, recipe, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--recipe", str(recipe), *arguments])
    script.main()


def refused(monkeypatch, capsys, script, recipe, *arguments):
    """The one line with which a script ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, script, recipe, *arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


class StopError(Exception):
    pass


def stop_distillation(monkeypatch, recipe, updates):
    """Run distill.py until its `updates`-th update, as if it were killed there."""
    original, done = loop._update, []

    def update(*arguments):
        done.append(1)
        if len(done) > updates:
            raise StopError
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_update", update)
        with pytest.raises(StopError):
            run(patched, distill, recipe, "--model", "distilled")


def test_stopped_distillation_does_not_go_on_under_another_loss(write, monkeypatch, tmp_path):
    recipe = write()
    run(monkeypatch, prepare_corpus, recipe)
    run(monkeypatch, extract_student, recipe, "--model", "cut")
    stop_distillation(monkeypatch, recipe, 5)
    checkpoints = tmp_path / "results" / "tiny" / "checkpoints" / "distilled"
    assert len(list(checkpoints.glob(f"*/{CHECKPOINT}"))) == 1
    updates = []
    original = loop._update
    monkeypatch.setattr(loop, "_update", lambda *a: (updates.append(1), original(*a))[1])
    write(loss={"ce": 0})
    run(monkeypatch, distill, recipe, "--model", "distilled")
    record = read_record(tmp_path / "results" / "tiny" / "distill" / "distilled.json")
    assert len(updates) == record.metrics["updates"]  # from the first one
    assert all("ce" not in row for row in record.metrics["history"])
    assert record.key == model_cell(load_recipe(recipe), "distilled").key
    assert not checkpoints.exists()


def test_stopped_distillation_goes_on_under_its_own_loss(write, monkeypatch, tmp_path):
    recipe = write()
    run(monkeypatch, prepare_corpus, recipe)
    run(monkeypatch, extract_student, recipe, "--model", "cut")
    stop_distillation(monkeypatch, recipe, 5)
    write(loss={"ce": 0})
    stop_distillation(monkeypatch, recipe, 3)  # keeps its own checkpoint beside the other
    write()
    updates = []
    original = loop._update
    monkeypatch.setattr(loop, "_update", lambda *a: (updates.append(1), original(*a))[1])
    run(monkeypatch, distill, recipe, "--model", "distilled")
    record = read_record(tmp_path / "results" / "tiny" / "distill" / "distilled.json")
    assert len(updates) == record.metrics["updates"] - 4


def test_stopped_distillation_does_not_go_on_under_a_student_made_again(write, monkeypatch):
    """Its settings, and so its key, are the same; its weights need not be."""
    recipe = write()
    run(monkeypatch, prepare_corpus, recipe)
    run(monkeypatch, extract_student, recipe, "--model", "cut")
    stop_distillation(monkeypatch, recipe, 5)
    shutil.rmtree(model_cell(load_recipe(recipe), "cut").folder)
    run(monkeypatch, extract_student, recipe, "--model", "cut")
    updates = []
    original = loop._update
    monkeypatch.setattr(loop, "_update", lambda *a: (updates.append(1), original(*a))[1])
    run(monkeypatch, distill, recipe, "--model", "distilled")
    record = model_cell(load_recipe(recipe), "distilled").read_record()
    assert len(updates) == record.metrics["updates"]  # from the first one


def test_stale_parents_are_refused_by_every_script(write, monkeypatch, capsys, tmp_path):
    recipe = write()
    run(monkeypatch, prepare_corpus, recipe)
    error = refused(monkeypatch, capsys, distill, recipe, "--model", "distilled")
    assert "cut: missing or unfinished; run python code/extract_student.py" in error
    run(monkeypatch, extract_student, recipe, "--model", "cut")
    write(layers=(1, 3))
    for script, *arguments in (
        (distill, "--model", "distilled"),
        (finetune, "--model", "cut", "--task", "sentiment"),
    ):
        error = refused(monkeypatch, capsys, script, recipe, *arguments)
        assert "cut: made with other settings, parents or data; run python code/extract" in error
    with pytest.raises(UserError, match="made with other settings"):
        checkpoint(load_recipe(recipe), "cut")
    results = tmp_path / "results" / "tiny"
    assert not list(results.glob("distill/*")) and not list(results.glob("finetune/*"))


def test_a_record_names_the_run_of_the_weights_that_it_read(write, monkeypatch, tmp_path):
    """Weights that were lost and made again are of another run, though all settings are equal."""
    recipe = write(seeds=[0, 1], finetune_tasks={"sentiment": {"epochs": 0.01}})
    results, extracted = tmp_path / "results" / "tiny", []
    for seed in ("0", "1"):
        run(monkeypatch, extract_student, recipe, "--model", "cut")
        asked = ("--model", "cut", "--task", "sentiment", "--seed", seed)
        run(monkeypatch, finetune, recipe, *asked)
        shutil.rmtree(results / "models" / "cut")
        extracted.append(read_record(results / "extract" / "cut.json").sha256)
        record = read_record(results / "finetune" / f"cut-sentiment-{seed}.json")
        assert record.measured.made_from == {"cut": extracted[-1]}
    assert extracted[0] != extracted[1]


def test_fine_tuning_starts_from_the_distillation_of_its_seed(write, monkeypatch, capsys, tmp_path):
    """Random weights of `each_seed` are drawn anew too; what is made for seed 0 keeps its key."""
    once = load_recipe(write())
    models = yaml.safe_load(once.file.read_text())["models"]
    drawn = {"teacher": "teacher", "layers": [0], "random": True, "each_seed": True}
    spec = {"teacher": "teacher", "student": "random", "each_seed": True}
    seeds = [0, 1, 2]
    models["random"] = {"label": "r", "extract": drawn, "tasks": [], "seeds": seeds}
    models["from_random"] = {"label": "f", "distill": spec, "seeds": seeds}
    models["distilled"] |= {"distill": spec | models["distilled"]["distill"], "seeds": seeds}
    path = write(models=models, seeds=[*seeds, 3], finetune_tasks={"sentiment": {"epochs": 0.01}})
    recipe = load_recipe(path)
    assert model_cell(recipe, "distilled").key == model_cell(once, "distilled").key
    for stage, model in (("extract", "random"), ("distill", "distilled")):
        names = [cell.name for cell in evidence_cells(recipe) if cell.stage == stage]
        assert [name for name in names if name.startswith(model)] == [
            model,
            f"{model}-1",
            f"{model}-2",
        ]
    for seed, made in enumerate(("", "-1", "-2")):
        start = finetune_cell(recipe, "distilled", "sentiment", seed).parents[0]
        assert start.name == f"distilled{made}"
        assert model_cell(recipe, "from_random", seed).parents[0].name == f"random{made}"
        assert model_cell(recipe, "cut", seed).name == "cut"

    run(monkeypatch, prepare_corpus, path)
    run(monkeypatch, extract_student, path, "--model", "cut")
    weights = {}
    for seed in (0, 1):
        asked = ("--seed", str(seed))
        run(monkeypatch, extract_student, path, "--model", "random", *asked)
        for model in ("distilled", "from_random"):
            run(monkeypatch, distill, path, "--model", model, *asked)
        for model in ("random", "distilled", "from_random"):
            weights[model, seed] = model_sha256(model_cell(recipe, model, seed).made)
    assert len(set(weights.values())) == len(weights)
    run(monkeypatch, finetune, path, "--model", "distilled", "--task", "sentiment", "--seed", "1")
    record = finetune_cell(recipe, "distilled", "sentiment", 1).read_record()
    assert list(record.measured.made_from) == ["distilled-1"]
    rows = {row["model"]: row["label"] for row in distillation.validation_rows(recipe)}
    assert (rows["distilled"], rows["distilled-1"]) == ("d", "d, seed 1")
    assert [row["model"] for row in distillation.budget_rows(recipe)] == ["cut", "distilled"]

    for script, model in ((extract_student, "cut"), (distill, "distilled")):
        told = refused(monkeypatch, capsys, script, write(), "--model", model, "--seed", "1")
        assert f"{model!r} is made once: leave out --seed" in told
    with pytest.raises(UserError, match="each_seed needs seed 0, which"):
        load_recipe(write(models=models, seeds=[1, 2]))
    models["distilled-1"] = models["cut"]
    with pytest.raises(UserError, match=r"models.distilled-1: the name of a run of 'distilled'"):
        load_recipe(write(models=models))
    models["cut"]["extract"] |= {"each_seed": True}
    with pytest.raises(UserError, match="each_seed needs random: true"):
        load_recipe(write(models=models))


def test_what_is_in_the_way_is_told_before_the_work(write, monkeypatch, capsys, tmp_path):
    recipe, results = write(), tmp_path / "results" / "tiny"
    run(monkeypatch, prepare_corpus, recipe)
    run(monkeypatch, extract_student, recipe, "--model", "cut")
    (results / "predictions").write_text("mine")
    for name in ("distilled", "cut-sentiment-0"):
        (results / "models" / name).mkdir()
        (results / "models" / name / "notes.txt").write_text("mine")
    monkeypatch.setattr(loop, "_update", None)  # no training begins
    task = ("--model", "cut", "--task", "sentiment")
    for words, script, *arguments in (
        ("holds 'notes.txt'", distill, "--model", "distilled"),
        ("predictions: a file, no folder", finetune, *task),
    ):
        assert words in refused(monkeypatch, capsys, script, recipe, *arguments)
    (results / "predictions").unlink()
    assert "holds 'notes.txt'" in refused(monkeypatch, capsys, finetune, recipe, *task, "--save")


def test_changed_text_makes_corpus_and_what_descends_from_it_stale(write, monkeypatch, tmp_path):
    recipe = write()
    run(monkeypatch, prepare_corpus, recipe)
    first = load_recipe(recipe)
    assert corpus_cell(first).is_recorded() and corpus_cell(first).has_folder()
    before = model_cell(first, "distilled").key
    dump = tmp_path / "dump.txt"
    dump.write_text(dump.read_text().replace("film", "play"))
    second = load_recipe(recipe)
    assert not corpus_cell(second).is_recorded() and not corpus_cell(second).has_folder()
    assert model_cell(second, "distilled").key != before
    assert corpus_cell(second).folder == tmp_path / "results" / "tiny" / "corpus"  # not in git
    own = corpus_cell(second).folder / "notes.txt"
    own.write_text("mine")
    run(monkeypatch, prepare_corpus, recipe)  # starts anew, and leaves what is not its own
    assert corpus_cell(second).has_folder() and own.exists()
    record = read_record(corpus_cell(second).record)
    assert [given.name for given in record.inputs] == ["lines:dump.txt", "weights:source"]
    assert str(tmp_path) not in corpus_cell(second).record.read_text()


def test_a_corpus_that_was_killed_before_its_record_is_not_taken_for_the_one_before(
    write, monkeypatch, tmp_path
):
    recipe, dump = write(), tmp_path / "dump.txt"
    run(monkeypatch, prepare_corpus, recipe)
    text = dump.read_text()
    dump.write_text(text.replace("film", "play"))

    def killed(*_):
        raise StopError

    with monkeypatch.context() as patched, pytest.raises(StopError):
        patched.setattr(Record, "model_dump_json", killed)
        run(patched, prepare_corpus, recipe)
    dump.write_text(text)
    assert not corpus_cell(load_recipe(recipe)).has_folder()
    run(monkeypatch, prepare_corpus, recipe)
    assert corpus_cell(load_recipe(recipe)).has_folder()


def test_changed_weights_make_their_descendants_stale(write, monkeypatch, tmp_path):
    recipe = write()
    keys = [cell.key for cell in evidence_cells(load_recipe(recipe))[1:4]]
    (tmp_path / "source" / "logits-of-a-cache.safetensors").touch()  # decides nothing
    (tmp_path / "source" / "README.md").touch()
    assert keys == [cell.key for cell in evidence_cells(load_recipe(recipe))[1:4]]
    shutil.rmtree(tmp_path / "source")
    other = tiny_teacher()
    next(other.parameters()).data.add_(1)
    other.save_pretrained(tmp_path / "source", get_tokenizer())
    changed = [cell.key for cell in evidence_cells(load_recipe(recipe))[1:4]]
    assert not set(keys) & set(changed)


def test_a_clone_without_the_files_knows_their_content(write, monkeypatch, tmp_path):
    recipe = write()
    run(monkeypatch, prepare_corpus, recipe)
    key = corpus_cell(open_recipe(recipe)).key
    (tmp_path / "dump.txt").unlink()
    assert corpus_cell(load_recipe(recipe)).key == key
    (tmp_path / "results" / "tiny" / "pins.json").unlink()
    cell = corpus_cell(load_recipe(recipe))
    assert cell.key != key
    with pytest.raises(UserError, match=r"lines:dump\.txt is missing"):
        cell.provenance  # noqa: B018


def test_weights_by_a_relative_path_have_one_key_where_they_are_missing_too(
    write, monkeypatch, tmp_path
):
    """`models/bert` is a folder here, and a name on the hub in a clone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "source").rename(tmp_path / "models" / "bert")

    def recipe(weights):
        models = yaml.safe_load(write().read_text())["models"]
        models["teacher"]["weights"] = weights
        return write(models=models)

    with pytest.raises(UserError, match=r"'models/bert' is a folder here.*; write \./models/bert"):
        open_recipe(recipe("models/bert"))
    path = recipe("./models/bert")
    cell = model_cell(open_recipe(path), "cut")
    assert [given.name for given in cell.inputs] == ["weights:bert"]
    shutil.rmtree(tmp_path / "models")
    assert model_cell(open_recipe(path), "cut").key == cell.key


def test_names_on_the_hub_are_pinned_to_a_commit(write, monkeypatch):
    models = yaml.safe_load(write().read_text())["models"]
    models["teacher"] = {"label": "t", "weights": "some/teacher"}
    path = write(models=models, corpus={"source": ["hub:some/text:en"]})
    newest = {"model": "1" * 40, "dataset": "2" * 40}
    monkeypatch.setattr(inputs, "_newest_commit", lambda kind, name: newest[kind])
    recipe = open_recipe(path)
    assert pinned_weights(recipe, "some/teacher") == f"some/teacher@{'1' * 40}"
    assert checkpoint(recipe, "teacher") == f"some/teacher@{'1' * 40}"
    assert pinned_source(recipe, "hub:some/text:en") == f"hub:some/text:en@{'2' * 40}"
    key = model_cell(recipe, "cut").key
    assert model_cell(recipe, "cut").provenance["inputs"][0].content == f"commit:{'1' * 40}"
    newest["model"] = "3" * 40  # moves on; the recipe does not
    assert model_cell(open_recipe(path), "cut").key == key
    models["other"] = {"label": "o", "weights": f"some/teacher@{'4' * 40}", "tasks": []}
    path = write(models=models, corpus={"source": ["hub:some/text:en"]})
    recipe = open_recipe(path)
    assert checkpoint(recipe, "other") == f"some/teacher@{'4' * 40}"
    assert model_cell(recipe, "cut").key == key  # its commit is not that of the other one
    (recipe.folder / "pins.json").unlink()
    assert model_cell(open_recipe(path), "cut").key != key


def test_a_raised_version_makes_a_stage_and_what_follows_stale(write, monkeypatch):
    recipe = load_recipe(write())
    names = ("cut", "distilled")
    before = {name: model_cell(recipe, name).key for name in names}
    monkeypatch.setitem(cell_module.STAGE_VERSIONS, "distill", 99)
    after = {name: model_cell(recipe, name).key for name in names}
    assert after["cut"] == before["cut"] and after["distilled"] != before["distilled"]
    tuned = finetune_cell(recipe, "distilled", "sentiment", 0)
    assert tuned.provenance["stage_version"] == 1 and tuned.parents[0].key == after["distilled"]


def test_teachers_of_one_name_or_other_layers_do_not_replace_each_other(
    write, monkeypatch, tmp_path
):
    recipe = write(distill=TRAINING | {"epochs": 0.1})
    run(monkeypatch, prepare_corpus, recipe)
    for number, folder in enumerate(("a", "b")):
        teacher = tiny_teacher()
        next(teacher.parameters()).data.add_(number)
        teacher.save_pretrained(tmp_path / folder / "bert", get_tokenizer())
        for _ in range(2):  # the second time it is the same cell
            arguments = ("--teacher", str(tmp_path / folder / "bert"), "--layers", "3,")
            run(monkeypatch, distill, recipe, "--model", "distilled", *arguments)
    run(monkeypatch, distill, recipe, "--model", "distilled", *arguments[:2], "--layers", "2,")
    names = sorted(p.stem for p in (tmp_path / "results" / "tiny" / "distill").glob("*.json"))
    assert len(names) == 3 and names[0] == "distilled-from-bert"
    assert all(name.startswith("distilled-from-bert-") for name in names[1:])


def test_a_record_in_the_place_of_another_is_refused(tiny):
    first, second = (finetune_cell(tiny, "teacher", "sentiment", seed) for seed in (0, 1))
    shutil.copy(second.record, first.record)
    with pytest.raises(UserError, match=r"the record of another cell, finetune .*'seed': 1"):
        first.read_record()
    assert second.is_recorded() and not first.is_recorded()


def test_a_copied_recipe_needs_a_name_of_its_own(tmp_path, monkeypatch):
    """Wherever the copy is: beside the recipe too."""
    content = (RECIPES / "quick.yaml").read_text()
    copies = [tmp_path / "mine.yaml", tmp_path / "recipes" / "mine.yaml"]
    copies[1].parent.mkdir()
    monkeypatch.setattr(recipes, "RECIPES", copies[1].parent)
    (copies[1].parent / "quick.yaml").write_text(content)
    for copy in copies:
        copy.write_text(content)
        with pytest.raises(UserError, match=r"mine\.yaml: name: 'quick' is a recipe of the pro"):
            load_recipe(copy)
        copy.write_text(content.replace("name: quick", "name: other"))
        assert load_recipe(load_recipe(copy).argument).name == "other"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (prepare_corpus, ("--max-length", "64"), "--max-length: the recipe decides"),
        (extract_student, ("--model", "cut", "--count", "3"), "--count: needs --teacher"),
    ],
)
def test_options_that_the_key_does_not_know_are_refused(
    write, monkeypatch, capsys, script, arguments, message
):
    assert message in refused(monkeypatch, capsys, script, write(), *arguments)


def test_publication_follows_recipe_and_every_module_behind_it(write, monkeypatch):
    """Text changed anywhere behind tables and report makes them stale; elsewhere it does not."""
    files = {
        path.relative_to(CODE).as_posix()
        for path in publication.modules_behind(
            [CODE / "claims.py", CODE / "build_report.py", *publication._notebooks()]
        )
    }
    for name in ("study/statistics", "study/figures", "metrics", "data/tasks", "study/cells"):
        assert f"distilbert_kit/{name}.py" in files
    assert not any("training/loop" in name or "serve/" in name for name in files)
    recipe = load_recipe(write())
    for cell in evidence_cells(recipe):
        cell.record.parent.mkdir(parents=True, exist_ok=True)
        cell.record.write_text("{}")
    key = publication.publication_key(recipe)
    assert key and publication.publication_key(recipe) == key
    write(title="Another title")
    assert publication.publication_key(recipe) != key
    write()
    assert publication.publication_key(recipe) == key
    leftover = ROOT / "report" / f".report-{recipe.name}.pdf.123abc-1-1.tmp"
    leftover.write_bytes(b"%PDF \xff")  # of a build that was killed
    try:
        assert publication.publication_key(recipe) == key
    finally:
        leftover.unlink()
    told = recipe.folder.parent / "base" / "claims" / "verdicts.json"
    # another recipe's scores stand in the report
    write_verdicts(recipe, "base", "paper", {"claims": [], "summary": {"name": "base", "rows": []}})
    assert publication.publication_key(recipe) != key
    told.unlink()
    original = publication.modules_behind
    monkeypatch.setattr(
        publication,
        "modules_behind",
        lambda programs: [p for p in original(programs) if p.name != "metrics.py"],
    )
    assert publication.publication_key(recipe) != key


@pytest.fixture
def listed_text(tmp_path, monkeypatch):
    """A listed data set `text`, whose training split holds three documents."""
    long = "was not as good as all of our friends had told us that it would be"
    rows = [{"id": n, "text": f"the {word} film {long}"} for n, word in enumerate("abc")]
    split = {"rows": len(rows), "sha256": rows_sha256(rows)}
    listing = {"text": {"columns": ["id", "text"], "splits": {"train": split}}}
    monkeypatch.setattr(tables, "DATA", tmp_path / "data")
    monkeypatch.setattr(text_sources, "sources", lambda: listing)
    for module in (tables, cell_module):
        monkeypatch.setattr(module, "expected_split", lambda dataset, split: split_of(listing))
    path = tmp_path / "data" / "text" / "train.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(path)
    return path, rows


def split_of(listing):
    return listing["text"]["splits"]["train"]


def test_corpus_of_listed_data_is_checked_and_recorded(write, listed_text, monkeypatch, capsys):
    path, rows = listed_text
    corpus = {"source": ["data:text/train"], "validation_fraction": 0.01}
    recipe = write(corpus=corpus)
    run(monkeypatch, prepare_corpus, recipe)
    (used,) = read_record(corpus_cell(load_recipe(recipe)).record).data
    assert (used.name, used.rows, used.sha256) == ("text/train", 3, rows_sha256(rows))
    assert corpus_cell(load_recipe(recipe)).data == (("text", "train"),)
    pd.DataFrame([*rows[:2], rows[2] | {"text": "another text of the same rows"}]).to_parquet(path)
    error = refused(monkeypatch, capsys, prepare_corpus, recipe)
    assert "content SHA-256 is" in error
    pd.DataFrame(rows[:2]).to_parquet(path)
    assert "2 rows, expected 3" in refused(monkeypatch, capsys, prepare_corpus, recipe)
