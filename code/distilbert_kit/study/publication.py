"""What turns records into tables, figures, report and poster, and whether they are current."""

import os
import sys
from pathlib import Path

from ..files import content_key
from ..paths import CODE, NOTEBOOKS, PAPER, RECIPES, ROOT
from .cells import _script, evidence_cells
from .recipes import Recipe
from .records import is_current


def _notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def publication_commands(recipe: Recipe) -> dict[str, tuple[list[str], list[str]]]:
    """What turns records into the report: name -> (names that come first, command)."""
    commands = {"claims": ([], _script("claims.py", recipe))}
    for notebook in _notebooks():
        # Relative to the root, where the graph runs: the executed notebook keeps the path.
        executed = os.path.relpath(recipe.folder / "notebooks" / notebook.name, ROOT)
        papermill = [sys.executable, "-m", "papermill", "--no-progress-bar"]
        commands[notebook.stem] = (
            ["claims"],
            [*papermill, "-p", "recipe", recipe.argument, f"notebooks/{notebook.name}", executed],
        )
    commands["report"] = (list(commands), _script("build_report.py", recipe))
    return commands


def publication_key(recipe: Recipe) -> str:
    """Hash of the files that decide tables, figures, report and poster; "" if one is missing."""
    paths = [
        *(cell.record for cell in evidence_cells(recipe)),
        *sorted(recipe.folder.glob("*/failed/*.json")),
        *_notebooks(),
        *sorted((ROOT / "report").glob("*.[ty][ym]*")),
        *sorted((ROOT / "poster").glob("*.typ")),
        *sorted((CODE / "distilbert_kit").glob("*evidence.py")),
        *(CODE / "distilbert_kit" / f"{name}.py" for name in ("figures", "metrics", "statistics")),
        CODE / "claims.py",
        CODE / "build_report.py",
        RECIPES / "claims.yaml",
        PAPER,
    ]
    if not all(path.is_file() for path in paths):
        return ""
    return content_key([path.read_text(encoding="utf-8") for path in paths])


def publication_record(recipe: Recipe) -> Path:
    """The record that `build_report.py` writes last."""
    return recipe.folder / "report" / "report.json"


def publication_is_current(recipe: Recipe) -> bool:
    """Whether report and poster were built from exactly the present files."""
    built = (ROOT / "report" / f"report-{recipe.name}.pdf").exists()
    return built and is_current(publication_record(recipe), publication_key(recipe))
