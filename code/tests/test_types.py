"""Types: a checker finds nothing in the kit and the README's program, and every mistake in use."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

from distilbert_kit.paths import CODE, ROOT

MISTAKES = """\
import distilbert_kit as kit
kit.nothing
kit.get_tokenizer(3)
kit.TrainSettings(epochs=1, learning_rate=1e-4, batch_size="2")
kit.create_classification_dataloader(["a"], ["one"], kit.get_tokenizer())
kit.extract_student("bert", [0])
kit.compute_mlm_loss([0.5], [1])
kit.load_predictor("mine")(["a"])[0].label
kit.train(kit.DistilBERTForMaskedLM.from_pretrained("minilm"), seed=0)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The lines with errors, by file: one run, as reading transformers takes most of its time."""
    folder = tmp_path_factory.mktemp("use")
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "readme.py").write_text(program)
    (folder / "mistakes.py").write_text(MISTAKES)
    settings = tomllib.loads((CODE / "pyproject.toml").read_text())["tool"]["pyright"]
    for name in ("venvPath", "venv"):  # the Python of the tests is told below
        del settings[name]
    settings |= {"include": [str(CODE / "distilbert_kit"), str(folder)], "extraPaths": [str(CODE)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--project", folder, "--level", "error"]
    command += ["--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] > 2 + len(list(CODE.glob("distilbert_kit/*.py")))
    lines = {}
    for error in report["generalDiagnostics"]:
        told = (error["range"]["start"]["line"] + 1, error["message"])
        lines.setdefault(error["file"], []).append(told)
    return {path.removeprefix(f"{folder}/"): errors for path, errors in lines.items()}


def test_the_kit_and_the_programs_of_its_users_have_no_errors(found):
    assert {path: errors for path, errors in found.items() if path != "mistakes.py"} == {}


def test_every_mistake_in_the_use_of_public_names_is_found(found):
    lines = {line for line, _ in found["mistakes.py"]}
    assert lines == set(range(2, 1 + len(MISTAKES.splitlines())))
