"""Twenty kill -9, in training, while checkpoints are written and while the result is saved.

The runs are the scripts' own. One process that has imported torch forks them all, so that twenty
of them take seconds.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import yaml
from safetensors.torch import load_file

from distilbert_kit.paths import CODE, RECIPES

KILLS = 20
CHANGES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def die_at_change(number: int, folder: Path, share: float = 0.0) -> Callable:
    """An audit hook that kills its process at the n-th change of a file under `folder`.

    Or later, by a share of the time between that change and the one before.
    """
    moments = []

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        moments.append(time.monotonic())
        if len(moments) == number and not share:
            kill()
        elif len(moments) == number:
            threading.Timer(share * (moments[-1] - moments[-2]), kill).start()

    return hook


def run(script: str, *arguments: str, hook: Callable | None = None) -> int:
    """The exit code of a script of code/, in a fork of this process."""
    if process := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        sys.argv = [script, *arguments]
        if hook:
            sys.addaudithook(hook)
        import_module(script).main()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def train_under_fire(script: str, recipe: Path, model: str, kills: int, seed: int) -> list[int]:
    """Kill a run `kills` times, resume it each time, let it end; updates done after each kill."""
    from distilbert_kit.training.checkpointing import CHECKPOINT, read_position

    results = Path(os.environ["RESULTS_DIR"]) / recipe.stem
    checkpoints, arguments = results / "checkpoints" / model, ("--recipe", str(recipe))
    draw, done = random.Random(seed), []
    for number in range(kills):
        saving = number - (kills - 3)
        if saving >= 0:
            hook = die_at_change(1 + 2 * saving, results / "models" / f".{model}.")
        else:  # a checkpoint is two changes: making its folder, naming its file
            hook = die_at_change(draw.randint(2, 5), checkpoints, draw.random() * (number % 2))
        code = run(script, *arguments, "--model", model, hook=hook)
        assert code == -signal.SIGKILL, f"{script}: kill {number} came too late"
        saved = [read_position(state.parent) for state in checkpoints.glob(f"*/{CHECKPOINT}")]
        done.append(saved[0]["result"]["updates"] if saved else 0)
    assert run(script, *arguments, "--model", model) == 0
    return done


def run_all(folder: Path) -> None:
    """Every stage without a kill and with ten for each training; prints updates after each kill."""
    import torch
    import torch._dynamo  # every optimiser imports it

    torch.set_num_threads(1)
    for script in ("prepare_corpus", "extract_student", "pretrain", "distill"):
        import_module(script)
    done = []
    for name in ("whole", "killed"):
        recipe = folder / f"{name}.yaml"
        assert run("prepare_corpus", "--recipe", str(recipe)) == 0
        for script, model in (
            ("pretrain", "teacher"),
            ("extract_student", "cut"),
            ("distill", "distilled"),
        ):
            if name == "killed" and script != "extract_student":
                done.append(train_under_fire(script, recipe, model, KILLS // 2, len(done)))
            else:
                assert run(script, "--recipe", str(recipe), "--model", model) == 0
    print(json.dumps(done))


def write_recipes(folder: Path) -> None:
    from test_distillation import tiny_teacher

    from distilbert_kit.data.grammar import build_sentiment
    from distilbert_kit.models.checkpoints import get_tokenizer

    rows = [row["sentence"] for row in build_sentiment("train", 660)]
    lines = [". ".join(rows[i : i + 3]) for i in range(0, len(rows), 3)]
    (folder / "dump.txt").write_text("\n".join(lines))
    tiny_teacher(dropout=0.1).save_pretrained(folder / "source", get_tokenizer())
    training = {"learning_rate": 1e-3, "batch_size": 4, "precision": "fp32", "checkpoint_every": 2}
    training |= {"epochs": 1}
    content = yaml.safe_load((RECIPES / "quick.yaml").read_text()) | {
        "corpus": {"source": [f"lines:{folder / 'dump.txt'}"], "validation_fraction": 0.1},
        "pretrain": training,
        "distill": training,
        "demo": [],
        "models": {
            "source": {"label": "source", "weights": str(folder / "source")},
            "teacher": {"label": "teacher", "pretrain": {"start": "source"}},
            "cut": {"label": "cut", "extract": {"teacher": "teacher", "layers": [0, 2]}},
            "distilled": {"label": "d", "distill": {"teacher": "teacher", "student": "cut"}},
        },
        "teacher": "teacher",
        "student": "distilled",
    }
    for name in ("whole", "killed"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | {"name": name}))


def test_twenty_kills_change_nothing(tmp_path):
    write_recipes(tmp_path)
    results = tmp_path / "results"
    environment = os.environ | {"RESULTS_DIR": str(results), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.run(
        [sys.executable, __file__, tmp_path], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr[-3000:]
    for done in json.loads(process.stdout.splitlines()[-1]):
        # No checkpoint is ever lost, and the moments lie all over the run.
        assert done == sorted(done) and len(done) == KILLS // 2 and len(set(done)) > 4
        assert done[-1] >= 40
    for stage, model in (("pretrain", "teacher"), ("distill", "distilled")):
        whole, killed = (results / name for name in ("whole", "killed"))
        weights = [
            (n / "models" / model / "model.safetensors").read_bytes() for n in (whole, killed)
        ]
        assert weights[0] == weights[1]
        records = [json.loads((n / stage / f"{model}.json").read_text()) for n in (whole, killed)]
        assert records[0]["metrics"] == records[1]["metrics"]
        assert not (killed / "checkpoints" / model).exists()
        assert sorted(p.name for p in (killed / "models").iterdir()) == [
            "cut",
            "distilled",
            "teacher",
        ]
    tensors = load_file(results / "killed" / "models" / "distilled" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


if __name__ == "__main__":
    sys.path.insert(0, str(CODE))
    run_all(Path(sys.argv[1]))
