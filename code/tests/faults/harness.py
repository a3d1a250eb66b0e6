"""Scripts of code/ run in forks of a process that has imported them, with a fault at a moment.

A fork is ready at once, where a new process imports for six seconds. What a run makes is compared
with what an undisturbed one made.
"""

import ctypes
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

from distilbert_kit.paths import CODE

FORKS = multiprocessing.get_context("forkserver")
BAR = re.compile(r"\[\d\d:\d\d")  # of progress, with the time since it began
CHANGES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
SCRIPTS = (
    "prepare_corpus",
    "extract_student",
    "pretrain",
    "distill",
    "finetune",
    "quantize",
    "distill_csv",
    "predict",
    "claims",
    "build_report",
)


@dataclass(frozen=True)
class Signal:
    """A signal at the n-th change of a file below the results, or after some seconds."""

    number: int
    change: int = 0
    seconds: float = 0.0

    def begin(self) -> None:
        if self.seconds:
            timer = threading.Timer(self.seconds, os.kill, (os.getpid(), self.number))
            timer.daemon = True
            timer.start()


@dataclass(frozen=True)
class Quota:
    """No file may grow beyond so many bytes: what a full quota or `ulimit -f` does."""

    size: int

    def begin(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@dataclass(frozen=True)
class Unprivileged:
    """Root loses the right to write where permissions forbid it."""

    def begin(self) -> None:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capget(header, sets) == 0
        for place in (0, 1):  # effective, permitted: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            sets[place] &= ~0b110
        assert libc.capset(header, sets) == 0


def use_two_threads() -> None:
    """In place of the one of all runs."""
    import torch

    torch.set_num_threads(2)


@dataclass(frozen=True)
class Ended:
    """How a run ended: status (or minus the signal), what it said, changes of files, seconds."""

    status: int
    said: str
    changes: int
    seconds: float


def _child(script: str, arguments: list[str], results: Path, scratch: Path, fault, prepare) -> None:
    """Be the script; never returns."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    from distilbert_kit import script as ending
    from distilbert_kit.study import recipes
    from distilbert_kit.training import loop

    recipes.RESULTS = results
    loop.CHECKPOINT_SECONDS = 0  # after every update
    changes = 0

    def hook(event: str, given: tuple) -> None:
        nonlocal changes
        if event not in CHANGES or not str(given[0]).startswith(str(results)):
            return
        if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
            return
        changes += 1
        if changes == getattr(fault, "change", 0):
            os.kill(os.getpid(), fault.number)

    status, began = 1, time.monotonic()
    try:
        sys.argv = [f"{script}.py", *arguments]
        for number in ending._WORKING:  # as at the end of script.py
            signal.signal(number, ending._leave)
        module = import_module(script)
        if prepare:
            prepare()
        sys.addaudithook(hook)
        if fault:
            fault.begin()
        module.main()
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        summary = {"changes": changes, "seconds": time.monotonic() - began}
        (scratch / "summary").write_text(json.dumps(summary))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Runner:
    """Starts scripts in forks, side by side if asked to."""

    def __init__(self, scratch: Path):
        self.scratch, self.runs = scratch, 0
        FORKS.set_forkserver_preload(["torch._dynamo", *SCRIPTS, "warm"])
        ours = {
            "PYTHONPATH": os.pathsep.join((str(CODE), str(Path(__file__).parent))),
            "OMP_NUM_THREADS": "1",
        }
        with patch.dict(os.environ, ours, TOKENIZERS_PARALLELISM="false"):
            forkserver.ensure_running()

    def start(
        self, script: str, *arguments, results: Path, fault=None, prepare: Callable | None = None
    ) -> Callable[[], Ended]:
        """Start a run; the function that is returned waits for its end."""
        self.runs += 1
        scratch = self.scratch / str(self.runs)
        scratch.mkdir()
        given = (script, [str(word) for word in arguments], results, scratch, fault, prepare)
        process = FORKS.Process(target=_child, args=given)
        process.start()

        def wait() -> Ended:
            process.join(300)
            if process.exitcode is None:
                process.kill()
                raise AssertionError(f"{script} hangs")
            path = scratch / "summary"
            summary = json.loads(path.read_text() or "{}") if path.exists() else {}
            lines = (scratch / "stderr").read_bytes().decode(errors="replace").split("\n")
            lines = [line.rpartition("\r")[2].rstrip() for line in lines]  # as a terminal shows it
            said = "".join(f"{line}\n" for line in lines if line and not BAR.search(line))
            return Ended(
                process.exitcode, said, summary.get("changes", 0), summary.get("seconds", 0.0)
            )

        return wait

    def run(self, script: str, *arguments, **options) -> Ended:
        """Run a script to its end."""
        return self.start(script, *arguments, **options)()
