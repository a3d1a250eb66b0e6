"""`make` after an install that was cut off, in a folder that moved, with another Python.

The Makefile is the project's own; a script stands for Python and pip, and notes what it was asked.
"""

import os
import shutil
import subprocess

import pytest

from distilbert_kit.paths import ROOT

PYTHON = """#!/bin/bash
# Stands for Python: `-m venv`, `-m pip`, and whether .venv runs the code of this folder.
echo "$*" >> "$LOG"
case "$*" in
  *ensurepip*) [ "$PIP" = absent ] && exit 1 ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && pwd > .venv/made-for ;;
  *requirements.txt)
    touch .venv/half
    [ "$PIP" = cut-off ] && kill -9 0
    [ "$PIP" = fails ] && exit 1
    touch .venv/whole ;;
  *distilbert_kit*) [ "$(cat .venv/made-for)" = "$(pwd)" ] && echo True ;;
esac
exit 0
"""


@pytest.fixture(params=["plain", "it's a \N{SNAKE} folder"])
def project(tmp_path, request):
    """A folder with the Makefile alone; `make(target, **variables)` runs it."""
    folder = tmp_path / request.param
    (folder / "code").mkdir(parents=True)
    for name in ("requirements.txt", "code/constraints.txt", "code/pyproject.toml"):
        (folder / name).touch()
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return folder


def run_make(folder, **variables):
    """`make setup`, as it ended."""
    (folder.parent / "log").write_text("")
    command = ["make", "--no-print-directory", "setup", f"PYTHON={folder.parent / 'python'}"]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"LOG": str(folder.parent / "log")} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a cut-off kills all of it
    )


def make(folder, **variables):
    """The status of `make setup`, and how often requirements were installed."""
    status = run_make(folder, **variables).returncode
    return status, (folder.parent / "log").read_text().count("requirements.txt")


def test_an_install_is_done_once(project):
    assert make(project) == (0, 1)
    assert make(project) == (0, 0)
    os.utime(project / "requirements.txt", (2e9, 2e9))
    assert make(project)[1] == 1


def test_an_install_that_was_cut_off_begins_anew(project):
    assert make(project, PIP="cut-off")[0] != 0
    assert (project / ".venv" / "half").exists()
    (project / ".venv" / "broken").touch()
    assert make(project) == (0, 1)
    assert (project / ".venv" / "whole").exists() and not (project / ".venv" / "broken").exists()
    assert make(project) == (0, 0)


def test_an_install_that_failed_goes_on_with_what_is_there(project):
    assert make(project, PIP="fails")[0] != 0
    (project / ".venv" / "fetched").touch()
    assert make(project) == (0, 1)
    assert (project / ".venv" / "fetched").exists()


def test_a_python_without_venv_is_told_first_what_to_install(project):
    """Debian's Python without the package python3-venv; nothing is left behind."""
    run = run_make(project, PIP="absent")
    assert run.returncode != 0 and b"apt install python3-venv" in run.stdout.splitlines()[0]
    assert not (project / ".venv").exists()
    assert make(project) == (0, 1)


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ("MemTotal: 24000000 kB\nmax", b""),
        ("MemTotal: 24000000 kB\n2000000000", b"2.0 GB of memory"),  # a container's limit
        ("MemTotal: 3500000 kB\nMemFree: 1 kB", b"3.5 GB of memory"),
        ("", b""),  # a system without these files
    ],
)
def test_a_machine_with_little_memory_is_told_so_first(project, machine, told):
    cat = project.parent / "bin" / "cat"
    cat.parent.mkdir()
    cat.write_text(f"#!/bin/bash\necho '{machine}'\n")
    cat.chmod(0o755)
    run = run_make(project, PATH=f"{cat.parent}:{os.environ['PATH']}")
    first_line = run.stdout.partition(b"\n")[0]
    assert run.returncode == 0 and told in first_line and (b"warning" in first_line) == bool(told)


@pytest.mark.parametrize("spoil", ["moved", "copied", "python gone", "python replaced"])
def test_a_venv_that_does_not_run_this_code_is_made_again(project, spoil):
    assert make(project) == (0, 1)
    if spoil in ("moved", "copied"):
        other = project.parent / "elsewhere"
        (shutil.move if spoil == "moved" else shutil.copytree)(project, other)
        project = other
    elif spoil == "python gone":
        (project / ".venv" / "bin" / "python").unlink()
        (project / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.9")
    else:
        (project / ".venv" / "bin" / "python").write_text("#!/bin/bash\nexit 1\n")
    (project / ".venv" / "old").touch()
    assert make(project) == (0, 1)
    assert not (project / ".venv" / "old").exists()
    assert make(project) == (0, 0)
