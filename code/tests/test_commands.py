"""Every command in READMEs and docstrings is given as it stands: up to where the work would begin.

Of a script its own parser takes the words, and a recipe that is named has the model and the task;
`make` says what it would run, whose scripts are asked in turn.
"""

import argparse
import ast
import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from distilbert_kit.data.tasks import get_task
from distilbert_kit.paths import CODE, ROOT
from distilbert_kit.study.recipes import load_recipe

STARTS = ("python code/", "make ", "torchrun ", "cat ", ".venv/bin/snakemake ")


def lines_of(path: Path) -> str:
    """Where a file has its commands: the docstring of a program, all of a text."""
    text = path.read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text


def commands():
    """(file, words) of every command; a backslash at the end of a line joins two."""
    programs = [*CODE.glob("*.py"), *(CODE / "examples").glob("*.py")]
    for path in (ROOT / "README.md", ROOT / "data" / "README.md", *sorted(programs)):
        text = re.sub(r"\\+\n\s*", " ", lines_of(path))
        inline = re.findall(r"`([^`\n]+)`", text)
        for line in (*map(str.strip, text.splitlines()), *inline):
            if line.startswith(STARTS):
                yield path.relative_to(ROOT).as_posix(), shlex.split(line, comments=True)


COMMANDS = sorted({(path, shlex.join(words)) for path, words in commands()})


class ParsedError(Exception):
    """The words were taken."""


def parse(script: str, words: list[str], monkeypatch) -> dict:
    """What the parser of a script makes of the words."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, given=None, namespace=None):
        raise ParsedError(original(parser, given, namespace))

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patched.setattr("sys.argv", [script, *words])
        with pytest.raises(ParsedError) as parsed:
            import_module(Path(script).stem).main()
    return vars(parsed.value.args[0])


def check_names(given: dict) -> None:
    """A recipe of the project that is named has what else is named."""
    name = given.get("recipe")
    if given.get("task"):
        get_task(given["task"])
    if name and not name.endswith(".yaml"):
        recipe = load_recipe(name)
        assert given.get("model") in (None, *recipe.models), given["model"]


def expand(line: str, variables: dict[str, str]) -> list[str]:
    """The words that a shell makes of a line with these variables."""
    run = ["bash", "-c", f"printf '%s\\n' {line}"]
    return subprocess.run(run, env=variables, capture_output=True, text=True).stdout.splitlines()


def give(words: list[str], monkeypatch) -> list:
    """Give a command up to where its work would begin; returns what it would then run."""
    program, *rest = words
    if program == "make":
        plan = subprocess.run(
            ["make", "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True, check=True
        )
        given = {"RECIPE": "quick"} | dict(word.split("=") for word in rest if "=" in word)
        lines = plan.stdout.replace("\\\n", " ").splitlines()
        for line in lines:
            if line.startswith(".venv/bin/python code/"):
                give(expand(line, given), monkeypatch)
        return lines
    if program == ".venv/bin/snakemake":
        files = [ROOT / word for word in rest if word.startswith("code/")]
        assert all(file.exists() for file in files)
        check_names(dict(word.split("=") for word in rest if word.startswith("recipe=")))
        return files
    (place,) = (n for n, word in enumerate(words) if re.fullmatch(r"code/[\w/]+\.py", word))
    assert (ROOT / words[place]).is_file()
    if "examples" not in words[place]:  # they have no options
        check_names(parse(words[place], words[place + 1 :], monkeypatch))
    return [words[place]]


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_a_command_can_be_given(path, command, monkeypatch):
    assert give(shlex.split(command), monkeypatch), "nothing would be run"


def test_commands_are_found_everywhere():
    found = {path for path, _ in COMMANDS}
    assert {"README.md", "data/README.md", "code/distill.py", "code/predict.py"} <= found
    assert len(COMMANDS) > 40
