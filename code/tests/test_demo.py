"""The script `demo.py`: what it serves, checks and refuses, and how it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from serving import serving_here
from test_app import QUESTION

import demo
from distilbert_kit.errors import UserError
from distilbert_kit.paths import CODE
from distilbert_kit.serve.comparison import Comparison
from distilbert_kit.serve.export import FILES
from distilbert_kit.study.cells import demo_cells
from distilbert_kit.study.recipes import load_recipe


def test_a_folder_with_the_int8_graph_alone_answers_in_int8(exported, tmp_path, capsys):
    """As distill_csv.py leaves one."""
    folder = Path(shutil.copytree(exported / "squad-int8", tmp_path / "squad"))
    (folder / FILES["fp32"]).unlink()
    compared = Comparison({"squad": folder}, tmp_path)
    compared.load()
    with pytest.raises(UserError, match="an fp32 form"):
        compared.ask("question-answering", "fp32", *QUESTION.values())
    with serving_here(compared) as port:
        demo.check(f"http://127.0.0.1:{port}", compared)
    assert "squad says" in capsys.readouterr().out


def test_check_answers_one_request_and_stops_for_exported_of_one_name(exported, tmp_path):
    models = [exported / "news", tmp_path / "news"]
    shutil.copytree(*models)
    command = [sys.executable, CODE / "demo.py", *models, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"{models[0]} says" in done.stdout.splitlines()[-1]


def test_check_of_a_folder_by_its_dot_takes_no_proxy(exported, monkeypatch):
    """And an address with colons is put in brackets."""
    monkeypatch.chdir(exported / "news-int8")
    command = [sys.executable, CODE / "demo.py", ".", "--check", "--host", "::1"]
    environment = os.environ | {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    address, said = done.stdout.splitlines()
    assert address.startswith("http://[::1]:") and said.startswith("news-int8 says")


def test_check_without_an_answer_is_one_line(exported):
    compared = Comparison({"news": exported / "news-int8"}, Path())
    compared.load()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(UserError, match=r"no answer .*refused"):
        demo.check(address, compared)


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, "stopped by Ctrl-C\n"),
        (signal.SIGTERM, 143, "stopped by SIGTERM\n"),
    ],
)
def test_a_stop_while_int8_is_made_is_one_line_and_leaves_nothing(
    exported, tmp_path, number, status, line
):
    """As a terminal does it: all processes of the group get the signal."""
    command = [sys.executable, CODE / "demo.py", exported / "news", "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout.readline().startswith("http://")
        exports = []
        while not exports:
            assert process.poll() is None
            time.sleep(0.05)
            children = psutil.Process(process.pid).children()
            exports = [each for each in children if "spawn_main" in " ".join(each.cmdline())]
        os.killpg(process.pid, number)
        error = process.communicate()[1]
    assert (process.returncode, error) == (status, line)
    assert not list(tmp_path.iterdir())


def test_a_recipe_beside_models_is_refused(exported, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo.py", str(exported / "news"), "--recipe", "study"])
    with pytest.raises(SystemExit) as stopped:
        demo.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "--recipe: " in error and error.count("\n") == 1


@pytest.mark.parametrize(("port", "advice"), [(None, "another"), ("99999", "65535")])
def test_a_wrong_port_or_one_in_use_is_one_line(exported, monkeypatch, capsys, port, advice):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port or str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["demo.py", str(exported / "news"), "--port", port])
        with pytest.raises(SystemExit) as stopped:
            demo.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and advice in error
    assert len(error.splitlines()) == 1


def test_without_weights_the_command_that_trains_them_is_told(monkeypatch):
    recipe = load_recipe("quick")
    monkeypatch.setattr("distilbert_kit.study.recipes.RESULTS", Path("nowhere"))
    with pytest.raises(UserError, match=f"run make demo RECIPE={recipe.name}"):
        demo.kept_models("quick")


@pytest.mark.parametrize("name", ["quick", "study"])
def test_recipes_keep_the_weights_of_their_demo(name):
    recipe = load_recipe(name)
    cells = demo_cells(recipe)
    assert cells and all("--save" in cell.command for cell in cells)
