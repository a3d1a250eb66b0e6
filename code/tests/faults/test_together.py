"""Runs beside each other, clocks that are wrong, recipes that change, records of before."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from harness import use_two_threads
from nightly import NIGHTLY
from safetensors.torch import load_file
from world import made, write_recipe

from distilbert_kit.files import locked
from distilbert_kit.paths import CODE
from distilbert_kit.study import cells, recipes
from distilbert_kit.study.recipes import load_recipe
from distilbert_kit.study.records import recording


@pytest.fixture
def tiny(world, tmp_path, monkeypatch):
    """The recipe of the small study, with what was there after its claims."""
    world.reach("claims")
    shutil.copytree(world.folder / "after-claims", tmp_path / "results")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    return load_recipe(world.folder / "tiny.yaml")


@pytest.mark.parametrize("step", ["corpus", "pretrain", "finetune"][: 3 if NIGHTLY else 2])
def test_one_of_two_runs_of_a_cell_makes_it(world, tmp_path, step):
    for _ in range(5 if NIGHTLY else 1):
        results = world.before(step, tmp_path / "results")
        words = world.words(step, results)
        both = [world.runner.start(*words, results=results) for _ in range(2)]
        ended = sorted((wait() for wait in both), key=lambda run: run.status)
        assert ended[0].status == 0, ended[0].said
        if ended[1].status:
            assert ended[1].status == 2 and len(ended[1].said.splitlines()) == 1, ended[1].said
            assert "another process is writing it" in ended[1].said
        assert made(results) == world.after(step)


def test_seeds_of_a_cell_run_side_by_side_as_alone(world, tmp_path):
    """On a cluster: they share the logits of their teacher."""
    world.reach("control")
    teacher = "tiny/models/distilled-sentiment-0"
    found = []
    for place, together in (("alone", False), ("together", True)):
        results = world.before("control", tmp_path / place)
        runs = []
        for seed in (1, 2):
            words = (*world.words("control", results), "--seed", seed)
            words += ("--teacher", results / teacher)
            runs.append(world.runner.start(*words, results=results))
            if not together:
                runs[-1]()
        assert [wait().status for wait in runs] == [0, 0]
        found.append(made(results))
    assert found[0] == found[1]
    assert sum("taught-by" in name and name.endswith(".json") for name in found[0]) == 2


def graph(results, recipe):
    """Start the experiment graph of a recipe file on a folder of results, in one thread as all."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", CODE / "Snakefile"]
    command += ["--config", f"recipe={recipe}", "publish=False"]
    command += ["--cores", "1", "--rerun-triggers", "mtime", "--rerun-incomplete", "--nolock"]
    command += ["--directory", results.parent]
    environment = os.environ | {"RESULTS_DIR": str(results), "PYTHONPATH": str(CODE)}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_second_graph_in_a_folder_is_refused_in_one_line(world, tiny):
    with locked(tiny.folder):
        second = graph(tiny.folder.parent, tiny.file)
        said, _ = second.communicate()
    assert second.returncode == 2
    assert said.splitlines()[-1].startswith("error: ") and "Traceback" not in said
    assert "another process is writing it" in said


def test_a_bad_recipe_ends_the_graph_in_one_line(world, tiny):
    (world.folder / "bad.yaml").write_text("name: mine\nmodles: {}\n")
    run = graph(tiny.folder.parent, world.folder / "bad.yaml")
    said, _ = run.communicate()
    assert run.returncode == 2 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: bad.yaml: ")


@pytest.mark.skipif(not NIGHTLY, reason="nightly: processes that import torch")
def test_two_graphs_at_once_make_what_one_makes(world, tmp_path):
    results = world.before("extract", tmp_path / "results")
    both = [graph(results, world.folder / "tiny.yaml") for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    again = graph(results, world.folder / "tiny.yaml")
    assert "rule cell" not in again.communicate()[0] and again.returncode == 0
    ours, theirs = made(results), world.after("quantize")
    shared = [name for name in ours if name in theirs and ".json" not in name]
    assert any(name.endswith(".onnx") for name in shared)
    assert [name for name in shared if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("days", [-4000, 1])
def test_files_of_another_time_decide_nothing(world, tiny, days):
    """The clock was set back, or forward: a file is older or newer than all that it rests on."""
    assert {c.stage for c in cells.cells_to_run(tiny).values()} <= {"benchmark", "quantize"}
    before = cells.cells_to_run(tiny).keys()
    shifted = time.time() + 86400 * days
    for number, path in enumerate(sorted(tiny.folder.rglob("*"))):
        os.utime(path, (shifted, shifted + number))
    assert cells.cells_to_run(tiny).keys() == before
    ended = world.run("claims", tiny.folder.parent)
    assert ended.status == 0 and made(tiny.folder.parent) == world.after("claims")


def test_failures_of_one_moment_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026, 1, 1, 0, 0, 0, 3, 1, 0)))
    for _ in range(3):
        with (
            pytest.raises(ZeroDivisionError),
            recording(
                tmp_path / "a.json", stage="s", cell={}, scale="embedded", recipe="r", settings={}
            ),
        ):
            1 / 0  # noqa: B018
    assert len(list((tmp_path / "failed").iterdir())) == 3


def test_a_recipe_that_was_edited_while_its_cells_ran_is_published_by_no_report(world, tiny):
    plan, results = cells.plan_key(tiny), tiny.folder.parent
    before = made(results)
    write_recipe(world.folder, seeds=[0, 1])
    try:
        ended = world.runner.run(*world.words("claims", results), "--plan", plan, results=results)
    finally:
        write_recipe(world.folder)
    assert ended.status == 2 and made(results) == before
    assert ended.said == "error: recipe tiny: changed while its cells ran; run make again\n"
    ended = world.runner.run(*world.words("claims", results), "--plan", plan, results=results)
    assert ended.status == 0


def test_a_record_of_another_schema_is_refused_in_a_line(world, tiny):
    cell = cells.finetune_cell(tiny, "distilled", "sentiment", 0)
    content = json.loads(cell.record.read_text()) | {"schema_version": 3}
    cell.record.write_text(json.dumps(content))
    ended = world.run("claims", tiny.folder.parent)
    assert ended.status == 2 and len(ended.said.splitlines()) == 1


@pytest.mark.parametrize("step", ["pretrain", "finetune"][: 2 if NIGHTLY else 1])
def test_runs_with_as_many_threads_are_equal_and_others_nearly(world, tmp_path, step):
    """Another number of threads may sum products in another order, and no more than that."""
    found, places = [], [world.before(step, tmp_path / str(number)) for number in range(2)]
    for results in places:
        ended = world.run(step, results, prepare=use_two_threads)
        assert ended.status == 0, ended.said
        found.append(made(results))
    assert found[0] == found[1]
    name = "tiny/models/teacher" if step == "pretrain" else "tiny/models/distilled-sentiment-0"
    one, two = (
        load_file(folder / name / "model.safetensors")
        for folder in (world.folder / f"after-{step}", places[0])
    )
    for tensor in one:
        torch.testing.assert_close(one[tensor], two[tensor], rtol=0, atol=1e-4, msg=tensor)
