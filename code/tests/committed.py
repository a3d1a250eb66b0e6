"""Files as git has them, not as a later run on this machine may have left or removed them."""

import shutil
import subprocess

import pytest

from distilbert_kit.paths import ROOT


def committed(path: str, commit: str = "HEAD") -> str:
    """The text of a file of the project; skips the test where there is no git, or no history."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    command = ["git", "show", f"{commit}:{path}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("no git history here")
    return found.stdout
