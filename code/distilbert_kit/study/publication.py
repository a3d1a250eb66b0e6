"""What turns records into tables, figures, report and poster, and whether they are current."""

import json
import os
import sys
from collections.abc import Iterable
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType

from ..errors import UserError
from ..files import content_key
from ..paths import CLAIMS, CODE, EARLIER, NOTEBOOKS, PAPER, ROOT
from .cells import evidence_cells, plan_key, script_command
from .ledger import evidence_by_column, load_ledger, summary_at_paper_size, verdict_rows
from .recipes import Recipe
from .records import is_current


def _notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def publication_commands(recipe: Recipe) -> dict[str, tuple[list[str], list[str]]]:
    """What turns records into the report: name -> (names that come first, command).

    UserError for a recipe without speed or tasks, of which the report would have nothing to tell.
    """
    recipe.require("speed")
    if not recipe.tasks:
        raise UserError(f"recipe {recipe.name} has no tasks: name some, or set publish=False")
    commands = {"claims": ([], script_command("claims.py", recipe, "--plan", plan_key(recipe)))}
    for notebook in _notebooks():
        # Relative to the root, where the graph runs: the executed notebook keeps the path.
        executed = os.path.relpath(recipe.folder / "notebooks" / notebook.name, ROOT)
        papermill = [sys.executable, "-m", "papermill", "--no-progress-bar"]
        papermill += ["--start-timeout", "600"]  # several kernels start at once
        commands[notebook.stem] = (
            ["claims"],
            [*papermill, "-r", "recipe", recipe.argument, f"notebooks/{notebook.name}", executed],
        )
    commands["report"] = (list(commands), script_command("build_report.py", recipe))
    return commands


def _code(path: Path) -> CodeType:
    """The program in a Python file or in the code cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return compile(text, str(path), "exec")


def modules_behind(programs: Iterable[Path]) -> list[Path]:
    """The files of the kit that the programs import, and that those import in turn."""
    finder = ModuleFinder([str(CODE)])
    for number, path in enumerate(programs):
        try:
            finder.scan_code(_code(path), finder.add_module(f"__program_{number}__"))
        except (ValueError, SyntaxError, LookupError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); restore it, as by git checkout") from None
    files = (vars(module)["__file__"] for module in finder.modules.values())
    return sorted(Path(file) for file in files if file)  # a program itself has none


DOCUMENTS = ("report", "poster")


def pdf_path(document: str, recipe: str) -> Path:
    """Where the report or the poster of the recipe with this name is."""
    return ROOT / document / f"{document}-{recipe}.pdf"


def publication_key(recipe: Recipe) -> str:
    """Hash of all that decides tables, figures, report and poster; "" if a file is missing."""
    programs = [CODE / "claims.py", CODE / "build_report.py", *_notebooks()]
    paths = [
        *(cell.record for cell in evidence_cells(recipe)),
        *sorted(recipe.folder.glob("*/failed/*.json")),
        *sorted(recipe.folder.glob("csv/*.json")),
        *sorted((ROOT / "report").glob("*.typ")),
        *sorted((ROOT / "report").glob("*.yml")),
        *sorted((ROOT / "poster").glob("*.typ")),
        recipe.file,
        CLAIMS,
        PAPER,
        EARLIER,
        ROOT / "data" / "sources.yaml",
    ]
    if not all(path.is_file() for path in paths):
        return ""
    texts = [path.read_text(encoding="utf-8") for path in (*paths, *programs)]
    # What other recipes say where this one has nothing.
    ledger, own = load_ledger(), verdict_rows(recipe, recipe.name)
    cells = (row[c] for row in evidence_by_column(recipe, ledger, own) for c in ledger.columns)
    others = [cell for cell in cells if cell.get("recipe", recipe.name) != recipe.name]
    modules = {
        path.relative_to(CODE).as_posix(): path.read_text(encoding="utf-8")
        for path in modules_behind(programs)
    }
    return content_key([texts, modules, others, summary_at_paper_size(recipe, ledger)])


def publication_record(recipe: Recipe) -> Path:
    """The record that `build_report.py` writes last."""
    return recipe.folder / "report" / "report.json"


def publication_is_current(recipe: Recipe) -> bool:
    """Whether report and poster were built from exactly the present files."""
    built = all(pdf_path(document, recipe.name).exists() for document in DOCUMENTS)
    return built and is_current(publication_record(recipe), publication_key(recipe))
