"""Notebooks, report and poster made of a recipe's records, in this process."""

import ast
import contextlib
import io
import json
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

import build_report
import claims
from distilbert_kit.paths import NOTEBOOKS
from distilbert_kit.study.publication import DOCUMENTS
from distilbert_kit.study.recipes import Recipe

USUAL = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def check_shown(shown: str, said: str) -> None:
    """No empty table, and at the end a sentence."""
    assert "Empty DataFrame" not in shown and "[0 rows" not in shown, shown
    assert re.fullmatch(r"[A-Z][^\n]+\.\n", said), said


def run_notebook(path: Path, recipe: Recipe) -> None:
    """Run the cells of a notebook on a recipe; a warning is an error."""
    names: dict = {"__name__": "__main__"}
    shown, out = [], io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in USUAL:
            warnings.simplefilter("ignore", kind)
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] != "code":
                continue
            source = "".join(cell["source"])
            if "parameters" in cell["metadata"].get("tags", ()):
                source = f"recipe = {recipe.argument!r}"
            tree, out, errors = ast.parse(source), io.StringIO(), io.StringIO()
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                exec(compile(tree, path.name, "exec"), names)
                if last:
                    value = ast.Expression(last.value)
                    shown.append(repr(eval(compile(value, path.name, "eval"), names)))
            assert not errors.getvalue(), errors.getvalue()
            plt.close("all")
    check_shown("\n".join(shown), out.getvalue())


def publish(recipe: Recipe, monkeypatch) -> dict[str, bytes]:
    """Verdicts and notebooks; returns the PDFs of report and poster, which are written nowhere."""
    monkeypatch.setattr("sys.argv", ["claims.py", "--recipe", recipe.argument])
    claims.main()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        run_notebook(path, recipe)
    return {document: build_report.typeset(document, recipe) for document in DOCUMENTS}
