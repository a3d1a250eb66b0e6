"""A damaged file is refused in one line or made again; it never decides a result.

Each row is a file that a stage reads: cut short, emptied, with a bit flipped or a block of zeros
at a random place, or swapped for one of the same kind.
"""

import json
import random
import shutil
import signal

import datasets
import pandas as pd
import pytest
from harness import Signal
from nightly import NIGHTLY
from world import made

import build_report
from distilbert_kit.data import tables
from distilbert_kit.data.sources import rows_sha256
from distilbert_kit.errors import UserError
from distilbert_kit.paths import NOTEBOOKS
from distilbert_kit.study import publication
from distilbert_kit.study.figures import save_table
from distilbert_kit.study.recipes import load_recipe

DAMAGES = ("cut short", "emptied", "bit", "zeros", "swapped")
TIMES = 12 if NIGHTLY else 1
CORPUS, TEACHER, TUNED = "tiny/corpus", "tiny/models/teacher", "tiny/finetune"
INT8, PREDICTED = "tiny/models/distilled-sentiment-0-int8", "tiny/predictions"
# The file, one of its kind, and the stage that reads it.
FILES = [
    (f"{CORPUS}/train-00000.bin", f"{CORPUS}/validation-00000.bin", "pretrain"),
    (f"{CORPUS}/train-00000.idx", f"{CORPUS}/validation-00000.idx", "pretrain"),
    (f"{CORPUS}/manifest.json", f"{CORPUS}/counts.json", "pretrain"),
    (f"{CORPUS}/counts.json", f"{CORPUS}/manifest.json", "pretrain"),
    (f"{CORPUS}/record.json", f"{TEACHER}/record.json", "pretrain"),
    (f"{TEACHER}/model.safetensors", "tiny/models/cut/model.safetensors", "distill"),
    (f"{TEACHER}/config.json", "tiny/models/cut/config.json", "distill"),
    (f"{TEACHER}/tokenizer.json", f"{TEACHER}/tokenizer_config.json", "distill"),
    (f"{TEACHER}/record.json", "tiny/models/cut/record.json", "distill"),
    (f"{TEACHER}/.distilbert-kit.json", "tiny/models/cut/.distilbert-kit.json", "distill"),
    (f"{TUNED}/distilled-sentiment-0.json", f"{TUNED}/cut-sentiment-0.json", "claims"),
    (
        f"{PREDICTED}/distilled-sentiment-0-validation.parquet",
        f"{PREDICTED}/cut-sentiment-0-validation.parquet",
        "claims",
    ),
]


def spoil(path, damage, draw, other):
    """Damage a file in place."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if damage == "swapped":
        content = other.read_bytes()
    elif damage in ("cut short", "emptied"):
        del content[place if damage == "cut short" else 0 :]
    elif damage == "bit":
        content[place] ^= 1 << draw.randrange(8)
    else:
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    path.write_bytes(content)


def check_refused_or_equal(ended, results, expected):
    """One line and status 2, or the result of an undisturbed run."""
    if ended.status == 2:
        assert len(ended.said.splitlines()) == 1 and ended.said.startswith("error: "), ended.said
        return
    assert ended.status == 0, ended.said
    assert made(results) == expected


def rows():
    """Every file with every damage; in every run of the tests with one of them in turn."""
    for number, row in enumerate(FILES):
        for damage in DAMAGES if NIGHTLY else DAMAGES[number % 5 :][:1]:
            yield *row, damage


@pytest.mark.parametrize(("file", "other", "step", "damage"), list(rows()))
def test_a_damaged_file_decides_nothing(world, tmp_path, file, other, step, damage):
    draw, expected = random.Random(f"{file} {damage}"), world.after(step)
    for _ in range(1 if damage in ("emptied", "swapped") else TIMES):
        results = world.before(step, tmp_path / "results")
        if not (place := results / other).exists():  # it is made later
            place = next(world.folder.glob(f"after-*/{other}"))
        whole = (results / file).read_bytes()
        spoil(results / file, damage, draw, place)
        ended = world.run(step, results)
        if ended.status == 0:
            (results / file).write_bytes(whole)  # the file itself is not what is compared
        check_refused_or_equal(ended, results, expected)


@pytest.mark.parametrize("damage", DAMAGES if NIGHTLY else ["bit"])
@pytest.mark.parametrize("step", ["pretrain", "distill"] if NIGHTLY else ["pretrain"])
def test_a_damaged_checkpoint_decides_nothing(world, tmp_path, step, damage):
    draw, expected = random.Random(f"{step} {damage}"), world.after(step)
    results = world.before(step, tmp_path / "stopped")
    late = int(0.8 * world.reach(step).changes)
    assert world.run(step, results, fault=Signal(signal.SIGKILL, change=late)).status == -9
    (checkpoint,) = results.glob("tiny/checkpoints/*/*/state.safetensors")
    for _ in range(1 if damage in ("emptied", "swapped") else TIMES):
        again = tmp_path / "results"
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(results, again)
        other = results / TEACHER / "model.safetensors"
        if not other.exists():
            other = world.folder / "source" / "model.safetensors"
        spoil(again / checkpoint.relative_to(results), damage, draw, other)
        check_refused_or_equal(world.run(step, again), again, expected)


@pytest.mark.skipif(not NIGHTLY, reason="nightly: a graph is exported")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_decides_nothing(world, tmp_path, damage):
    draw = random.Random(damage)
    world.reach("quantize")
    results = tmp_path / "results"
    shutil.copytree(world.folder / "after-quantize", results)
    words = ("predict", "--model", results / INT8, "a fine film")
    expected = made(results)
    whole = (results / INT8 / "model_quantized.onnx").read_bytes()
    for _ in range(1 if damage in ("emptied", "swapped") else TIMES):
        graph = results / INT8 / "model_quantized.onnx"
        graph.write_bytes(whole)
        spoil(graph, damage, draw, results / INT8 / "model.onnx")
        ended = world.runner.run(*words, results=results)
        assert ended.status == 2 and len(ended.said.splitlines()) == 1, ended.said
    (results / INT8 / "model_quantized.onnx").write_bytes(whole)
    assert world.runner.run(*words, results=results).status == 0
    assert made(results) == expected


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_damaged_data_decide_nothing(tmp_path, monkeypatch, damage):
    """A listed data set, by its content; the library's cache may know the file before."""
    rows = [{"id": n, "text": f"the {word} film"} for n, word in enumerate("abc" * 50)]
    listed = {"rows": len(rows), "sha256": rows_sha256(rows)}
    monkeypatch.setattr(tables, "DATA", tmp_path)
    monkeypatch.setattr(tables, "expected_split", lambda dataset, split: listed)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path, draw = tmp_path / "text" / "train.parquet", random.Random(damage)
    path.parent.mkdir()
    for _ in range(TIMES):
        pd.DataFrame(rows).to_parquet(path)
        spoil(path, damage, draw, path)
        try:
            table, _ = tables.load_table("text", "train", ["id", "text"])
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert table.to_list() == rows


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "zeros"])
def test_a_damaged_notebook_is_named(tmp_path, damage):
    source = next(NOTEBOOKS.glob("*.ipynb"))
    path, draw = tmp_path / source.name, random.Random(damage)
    for _ in range(TIMES):
        shutil.copyfile(source, path)
        spoil(path, damage, draw, NOTEBOOKS.parent / "README.md")
        try:
            publication.modules_behind([path])
        except UserError as error:
            assert source.name in str(error)
            continue
        assert damage == "bit"  # of a text, which the key of the publication holds


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_set_into_no_report(world, tmp_path, monkeypatch, damage):
    monkeypatch.setattr("distilbert_kit.study.recipes.RESULTS", tmp_path)
    recipe, draw = load_recipe(world.folder / "tiny.yaml"), random.Random(damage)
    for _ in range(TIMES):
        save_table(recipe, "study", {"name": "tiny", "rows": [{"value": 0.25}]})
        path = recipe.folder / "tables" / "study.json"
        content = json.loads(path.read_text())
        other = tmp_path / "other.json"
        other.write_text("[1]")
        spoil(path, damage, draw, other)
        try:
            same = json.loads(path.read_bytes()) == content
        except ValueError:
            same = False
        with pytest.raises(UserError) as refused:
            build_report.typeset("report", recipe)
        assert same or "study.json: damaged" in str(refused.value)
