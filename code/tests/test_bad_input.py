"""Numbers out of range, recipes that are no text, stopped scripts: one line and its status."""

import ast
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from distilbert_kit.script import entry_point

import pytest
import torch

from distilbert_kit.errors import UserError
from distilbert_kit.paths import CODE, RECIPES
from distilbert_kit.settings import TrainSettings, read_seed
from distilbert_kit.study.recipes import load_recipe


@pytest.mark.parametrize("seed", ["-1", str(2**32), "1.5", "nan", "one", ""])
def test_seeds_are_what_torch_and_numpy_take(seed, tmp_path):
    with pytest.raises(UserError, match=r"seed .*: give a whole number from 0 to 4,294,967,295"):
        read_seed(seed)
    assert (read_seed("0"), read_seed(str(2**32 - 1))) == (0, 2**32 - 1)


RATES = ("epochs", "learning_rate", "weight_decay", "max_grad_norm")
NOT_FINITE = [(key, value) for key in RATES for value in (float("inf"), float("nan"), -1.0)]


@pytest.mark.parametrize(("key", "value"), [*NOT_FINITE, ("epochs", 1e300)])
def test_settings_are_finite(key, value):
    with pytest.raises(ValueError, match=key):
        TrainSettings(**{"epochs": 1, "learning_rate": 1e-4, "batch_size": 8} | {key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("seeds: [0]", "seeds: [-1]"), "seeds.0: "),
        (lambda text: text.replace("seeds: [0]", "seeds: [4294967296]"), "seeds.0: "),
        (lambda text: text + "\nepochs: .inf", "unknown key 'epochs'"),
        (lambda text: text.replace("epochs: 2 ", "epochs: .inf "), "finetune.epochs: "),
        (lambda text: "\u00e9", "not UTF-8 at byte 1"),
        (lambda text: "[1, 2]", "recipe: "),
        (lambda text: "# nothing yet", "empty; begin with a copy of code/examples/recipe.yaml"),
        # Misspelt, a key is missing too.
        (lambda text: text.replace("\nmodels:", "\nmodel:"), "unknown key 'model'; did you mean"),
        (lambda text: text.replace("name: quick", "name: ../quick"), "name: "),
        (lambda text: text.replace("name: quick", "name: /tmp/mine"), "name: "),
        (lambda text: text.replace("  random:", "  ../random:"), "models.../random"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path, change, message):
    text = (RECIPES / "quick.yaml").read_text()
    changed = change(text)
    assert changed != text
    path = tmp_path / "mine.yaml"
    path.write_bytes(changed.encode("latin-1" if changed == "\u00e9" else "utf-8"))
    with pytest.raises(UserError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith("mine.yaml: ") and message in str(refused.value)


STOPPED = """
import os, signal, sys
from distilbert_kit.script import entry_point

@entry_point
def main():
    print("begun", flush=True)
    if sys.argv[1] == "pipe":
        for _ in range(100000):
            print("x" * 100)
    os.kill(os.getpid(), int(sys.argv[1]))
    signal.pause()

main()
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_script_says_so_in_one_line(number, status):
    run = subprocess.run(
        [sys.executable, "-c", STOPPED, str(int(number))], cwd=CODE, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (status, "begun\n")
    assert run.stderr.startswith("stopped by ") and run.stderr.count("\n") == 1


def test_what_the_terminal_cannot_show_is_escaped():
    program = "from distilbert_kit.script import entry_point\nentry_point(lambda: print('a…'))()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=CODE, env=environment, capture_output=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"a\\u2026\n", b"")


@pytest.mark.parametrize(
    ("closed", "out", "error"),
    [("<&-", "done\n", "\n"), (">&-", "", "given\n"), ("2>&-", "done\n", "")],
)
def test_a_closed_stream_is_an_empty_one(closed, out, error):
    program = (
        "import sys; from distilbert_kit.script import entry_point\n"
        "entry_point(lambda: print(sys.stdin.read(), file=sys.stderr) or print('done'))()"
    )
    command = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", program]
    run = subprocess.run(command, cwd=CODE, capture_output=True, text=True, input="given")
    assert (run.returncode, run.stdout, run.stderr) == (0, out, error)


def test_an_argument_that_is_no_text_is_one_line():
    program = "from distilbert_kit.script import entry_point\nentry_point(print)()"
    command = [sys.executable, "-c", program, "fine", b"caf\xe9"]
    run = subprocess.run(command, cwd=CODE, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == r"error: argument 2: 'caf\udce9' is not UTF-8; rename or retype it" + "\n"


def test_an_interactive_session_keeps_its_signals():
    """There `__main__` has no file, as with -c; the folder's parent is that of the scripts."""
    program = "import signal, distilbert_kit.script; print(signal.getsignal(signal.SIGTERM))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CODE / "tests",
        env=os.environ | {"PYTHONPATH": str(CODE)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "0\n", run.stderr  # Handlers.SIG_DFL


def is_loading_torch(process):
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("script", "number", "status"),
    [("pretrain.py", signal.SIGINT, 130), ("evaluate_model.py", signal.SIGTERM, 143)],
)
def test_a_script_stopped_while_it_imports_says_so_in_one_line(script, number, status):
    with subprocess.Popen(
        [sys.executable, CODE / script], stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not is_loading_torch(process):
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate()[1]
    assert process.returncode == status
    assert error.startswith("stopped by ") and error.count("\n") == 1


def test_every_script_decides_how_it_ends_before_it_imports_anything_slow():
    """What comes before is of Python's own library, or sets a variable that imports read."""
    for path in CODE.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = {alias.name for alias in getattr(node, "names", ())}
            module = getattr(node, "module", None)
            if module == "distilbert_kit.script":
                break
            first = {name.split(".")[0] for name in ({module} if module else names)}
            assert first <= sys.stdlib_module_names, f"{path.name}: {first}"
        else:
            pytest.fail(f"{path.name}: never imports distilbert_kit.script")


@pytest.mark.parametrize("script", sorted(path.stem for path in CODE.glob("*.py")))
def test_only_trainings_on_a_corpus_take_several_processes(script, monkeypatch, capsys):
    """The others would all do the whole work, and write it over each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", [f"{CODE}/{script}.py", "--no-such-option"])
    with pytest.raises(SystemExit, match="2"):
        import_module(script).main()
    (said,) = capsys.readouterr().err.splitlines()
    refused = "error: 2 processes (WORLD_SIZE) would do the same work; start without torchrun"
    assert (said == refused) is (script not in ("distill", "pretrain"))


def cuda_out_of_memory():
    if torch.cuda.is_available():
        torch.empty(1 << 50, device="cuda")
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "fill", [lambda: bytearray(1 << 62), lambda: torch.empty(1 << 50), cuda_out_of_memory]
)
def test_out_of_memory_is_one_line(fill, capsys):
    with pytest.raises(SystemExit, match="2"):
        entry_point(fill)()
    assert capsys.readouterr().err == "error: out of memory; lower batch_tokens or batch_size\n"


def test_a_closed_pipe_ends_without_a_word():
    run = subprocess.Popen(
        [sys.executable, "-c", STOPPED, "pipe"],
        cwd=CODE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == b"" and run.wait() == 141


def test_advice_fits_what_the_disk_said(capsys):
    @entry_point
    def main():
        raise PermissionError(13, os.strerror(13), "somewhere")

    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "somewhere: check the permissions, or choose another place" in error


def test_what_was_said_before_the_disk_refused_is_not_lost(tmp_path):
    program = (
        "from distilbert_kit.script import entry_point\n"
        "@entry_point\ndef main():\n    print('first'); raise OSError(28, 'No space', 'there')\n"
        "main()"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=CODE, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == "first\n" and run.stderr.startswith("error: ")


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path, capsys):
    """`prepare_corpus.py --output a-file`."""
    (tmp_path / "a").touch()
    with pytest.raises(SystemExit) as stopped:
        entry_point((tmp_path / "a").mkdir)()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: File exists") and "/a" in error
