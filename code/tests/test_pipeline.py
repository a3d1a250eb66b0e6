"""The experiment graph run by Snakemake: stopped with kill -9, run again, run once more."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, RECIPES
from distilbert_kit.study import cells as experiment
from distilbert_kit.study.recipes import load_recipe


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    """The quick recipe with a tiny teacher, cut twice, in a folder with a space."""
    folder = tmp_path / "a folder"
    torch.manual_seed(0)
    shape = create_model_config(
        "MiniLM-L6", hidden_size=16, intermediate_size=32, num_heads=2, max_position_embeddings=128
    )
    DistilBERTForMaskedLM(shape).save_pretrained(folder / "teacher", get_tokenizer())
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content |= {
        "name": "tiny",
        "models": {
            "teacher": {"label": "t", "weights": str(folder / "teacher")},
            "cut": {"label": "c", "extract": {"teacher": "teacher", "layers": [0, 2, 4]}},
            "again": {"label": "a", "extract": {"teacher": "cut", "layers": [1]}},
        },
        "teacher": "teacher",
        "student": "cut",
        "tasks": [],
    }
    for key in ("corpus", "pretrain", "distill", "demo", "speed"):
        content.pop(key, None)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(recipe_file: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--snakefile", CODE / "Snakefile"]
    command += ["--config", f"recipe={recipe_file}", "publish=False", "--cores", "all"]
    command += ["--rerun-triggers", "mtime", "--rerun-incomplete", "--nolock"]
    command += ["--directory", recipe_file.parent]
    environment = os.environ | {"RESULTS_DIR": str(recipe_file.parent / "results")}
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    return output


def test_killed_graph_finishes_what_is_missing_and_then_does_nothing(recipe_file):
    results = recipe_file.parent / "results" / "tiny"
    process = start(recipe_file)
    # Until a cell is done whole: one killed between its record and its model card runs again.
    while not list(results.glob("models/*/README.md")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.read_bytes() for path in results.glob("*/*.json")}
    assert kept
    finish(start(recipe_file))
    for path, content in kept.items():
        assert path.read_bytes() == content, f"{path.name} ran twice"
    recipe = load_recipe(recipe_file)
    cells = experiment.evidence_cells(recipe)
    assert {results / cell.stage / f"{cell.name}.json" for cell in cells} == set(
        results.glob("*/*.json")
    )
    assert "rule cell" not in finish(start(recipe_file))
    # only the cell whose record is gone runs again, with the weights it needs
    gone = results / "extract" / "again.json"
    others = {p: p.stat().st_mtime_ns for p in results.glob("*/*.json") if p != gone}
    gone.unlink()
    finish(start(recipe_file))
    assert gone.exists()
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in others.items())


def plan(recipe_file: Path, *arguments) -> str:
    """What Snakemake would run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", CODE / "Snakefile", "--dry-run"]
    environment = os.environ | {"RESULTS_DIR": str(recipe_file.parent / "results")}
    found = subprocess.run(
        [*command, "--directory", recipe_file.parent, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_notebooks_are_made_again_from_the_records_that_are_there(recipe_file):
    told = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump(content | {key: told[key] for key in ("speed", "tasks")}))
    config = ("--cores", "1", "--config", f"recipe={recipe_file}")
    assert "rule cell:" in plan(recipe_file, *config)
    again = plan(recipe_file, *config, "republish=True")
    assert "rule publish:" in again and "rule cell:" not in again


def test_slurm_profile_is_read_and_plans_a_job_a_cell(recipe_file):
    """The cluster's plugin is optional: without it the same profile plans for this machine."""
    arguments = ["--workflow-profile", CODE / "examples" / "slurm"]
    arguments += ["--config", f"recipe={recipe_file}", "publish=False"]
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        arguments += ["--executor", "local", "--cores", "16"]
    jobs = plan(recipe_file, *arguments).split("rule cell:")[1:]
    cells = experiment.cells_to_run(load_recipe(recipe_file))
    assert len(jobs) == len(cells)
    asked = ("slurm_partition=cpu", "runtime=120", "threads: 8")
    assert all(word in job for job in jobs for word in asked)
