"""Scripts as a person starts them, in forks of one process that has imported the libraries already.

Importing torch and transformers takes seconds of each process. Nothing of the kit is imported
before the fork: paths and settings are those of the script's own environment.
"""

import os
import runpy
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

CODE = Path(__file__).resolve().parents[1]
LIBRARIES = ("accelerate", "datasets", "pandas", "scipy.stats", "sklearn.metrics", "torch._dynamo")
LIBRARIES += ("transformers.activations", "transformers.modeling_outputs", "transformers.trainer")

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", *LIBRARIES])


def _run(words: list[str], environment: dict[str, str], streams: list[Path]) -> None:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = words, str(CODE)
    runpy.run_path(words[0], run_name="__main__")


def run_script(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run code/<script> to its end; `environment` is added to that of this process."""
    words = [str(CODE / script), *map(str, arguments)]
    with TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _FORKS.Process(target=_run, args=(words, os.environ | environment, streams))
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            words, process.exitcode, *(stream.read_text() for stream in streams)
        )
