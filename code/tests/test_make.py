"""Make and the experiment graph: strange names are only names, to every shell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hostile import LONG

from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import CODE, RECIPES, ROOT

STRANGE = "a ;touch canary; $(touch canary) `touch canary` 'b' \"c\" #d: [e\nf"


@pytest.fixture
def project(tmp_path):
    """The project's Makefile and code in a folder of their own, with this Python as its own."""
    root = tmp_path / "project"
    (root / ".venv").mkdir(parents=True)
    for name in ("Makefile", "code", "requirements.txt"):
        (root / name).symlink_to(ROOT / name)
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (root / ".venv" / ".installed").touch()
    return root


def make(root, *arguments, **variables):
    environment = os.environ | {"PYTHONPATH": str(CODE)} | variables
    return subprocess.run(
        ["make", *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("target", ["data", "dry-run", "notebooks"])
def test_no_text_of_a_recipe_reaches_a_shell(project, target):
    for option in ("RECIPE", "DATASET")[: 1 + (target == "data")]:
        done = make(project, target, f"{option}={STRANGE}")
        assert done.returncode == 2 and not list(project.rglob("canary"))
        shown = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(shown) == 1 and "touch canary" in shown[0]


def test_clean_takes_the_folder_of_the_results(project, tmp_path):
    for root in (project / "results", tmp_path / STRANGE):
        (root / "r" / "models").mkdir(parents=True)
        (root / "r" / "record.json").touch()
    assert make(project, "clean", RESULTS_DIR=str(tmp_path / STRANGE)).returncode == 0
    assert [path.name for path in (tmp_path / STRANGE / "r").iterdir()] == ["record.json"]
    assert (project / "results" / "r" / "models").is_dir()
    assert not list(tmp_path.rglob("canary"))


def test_a_mistake_in_the_code_is_no_reason_to_install_again(project):
    (project / "code").unlink()
    kit = project / "code" / "distilbert_kit"
    kit.mkdir(parents=True)
    (kit / "__init__.py").write_text("(")
    for name in ("constraints.txt", "pyproject.toml"):
        (project / "code" / name).symlink_to(CODE / name)
    (project / ".venv" / ".installed").touch()

    def planned(path):
        return make(project, "-n", "lint", PYTHONPATH=str(path)).stdout

    assert "rm -rf .venv" not in planned(project / "code")
    assert "rm -rf .venv" in planned(CODE)  # the kit of another folder


def test_a_user_without_a_home_or_a_name_has_one_in_the_project(project, monkeypatch):
    """A number in a container, say: pip and Snakemake end with a traceback without them."""
    shown = ("--no-print-directory", "--eval", 'shown:; @echo "$$HOME, $$USER"', "shown")
    home = project / "some where"
    home.mkdir()
    monkeypatch.delenv("LOGNAME", raising=False)
    named = make(project, *shown, HOME=str(home), USER="some one")
    assert named.stdout == f"{home}, some one\n"
    monkeypatch.delenv("USER", raising=False)
    here = f"{project / '.venv'}, {os.getuid()}\n"
    assert make(project, *shown, HOME="/a home/that is not").stdout == here
    monkeypatch.delenv("HOME")
    assert make(project, *shown).stdout == here
    monkeypatch.setenv("LOGNAME", "some one")
    assert make(project, *shown).stdout == f"{project / '.venv'}, \n"


def test_strange_names_of_recipe_model_data_and_results_are_only_names(project, tmp_path):
    """A whole reproduction, without its report, by `make` in folders that would be commands."""
    folder = tmp_path / STRANGE
    folder.mkdir()
    shape = create_model_config("bert-tiny", vocab_size=30522, hidden_size=8, num_layers=2)
    DistilBERTForMaskedLM(shape).save_pretrained(folder / "teacher", get_tokenizer())
    lines = [f"the history of words, number {n} {LONG}" for n in range(99)]
    (folder / "text").write_text("\n".join(lines))
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text())
    content = {key: content[key] for key in ("title", "scale", "seeds", "finetune")} | {
        "name": "strange",
        "models": {"teacher": {"label": "t", "weights": str(folder / "teacher")}},
        "teacher": "teacher",
        "student": "teacher",
        "tasks": [],
        "corpus": {"source": [f"lines:{folder / 'text'}"], "validation_fraction": 0.1},
    }
    (folder / "strange.yaml").write_text(yaml.safe_dump(content))
    results = folder / "results"
    recipe = f"RECIPE={folder / 'strange.yaml'}"
    done = make(project, "reproduce", "CONFIG=publish=False", recipe, RESULTS_DIR=str(results))
    assert done.returncode == 0, done.stderr
    assert (results / "strange" / "corpus" / "corpus.json").is_file()
    assert not list(tmp_path.rglob("canary")) and not (ROOT / "canary").exists()


def test_the_commands_of_the_graph_are_lists_of_words():
    """Snakemake's shell gets them through shlex: what it reads back are the same words."""
    text = (CODE / "Snakefile").read_text()
    assert text.count("shell:") == text.count("shlex.join(") == 2
    assert shlex.split(shlex.join(["python", STRANGE])) == ["python", STRANGE]
