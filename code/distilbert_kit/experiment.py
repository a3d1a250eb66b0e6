"""The experiment graph: a recipe becomes cells, and content decides which of them must run.

A cell is current when its record carries the cell's key: the hash of its settings, of its
parents' keys and of its data. File times say nothing, git does not keep them. This module is
light (no torch): the Snakefile imports it.
"""

import shutil
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .paths import CODE, NOTEBOOKS, PAPER, RECIPES, ROOT
from .recipes import Recipe
from .records import content_key, is_current
from .sources import expected_split
from .tasks import get_task


@dataclass(frozen=True)
class Cell:
    """One run of one stage, with everything that decides its result."""

    recipe: Recipe
    stage: str
    name: str
    identity: dict
    settings: dict
    command: list[str]
    parents: tuple["Cell", ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    makes_model: bool = False
    outputs: tuple[Path, ...] = field(default=())

    @cached_property
    def key(self) -> str:
        """Hash of what decides the result."""
        hashes = [expected_split(*split)["sha256"] for split in self.data]
        parents = [parent.key for parent in self.parents]
        return content_key([self.stage, self.identity, self.settings, parents, hashes])

    @property
    def record(self) -> Path:
        return self.recipe.folder / self.stage / f"{self.name}.json"

    @property
    def model_folder(self) -> Path:
        return self.recipe.folder / "models" / self.name

    def predictions(self, split: str) -> Path:
        """Parquet file of the per-example predictions on a split."""
        return self.recipe.folder / "predictions" / f"{self.name}-{split}.parquet"

    @property
    def provenance(self) -> dict:
        """Arguments for `records.recording`."""
        return {
            "stage": self.stage,
            "cell": self.identity,
            "scale": self.recipe.scale,
            "recipe": self.recipe.name,
            "settings": self.settings,
            "key": self.key,
        }

    def stamp_weights(self) -> None:
        """Leave the record with the weights: they tell later which cell they are from."""
        shutil.copyfile(self.record, self.model_folder / "record.json")

    def is_recorded(self) -> bool:
        """Whether the record is there and current."""
        return is_current(self.record, self.key) and all(path.exists() for path in self.outputs)

    def has_weights(self) -> bool:
        """Whether the weights are here too, from exactly this cell (they are not in git)."""
        return is_current(self.model_folder / "record.json", self.key)


def _script(name: str, recipe: Recipe, *arguments: str) -> list[str]:
    return [sys.executable, str(CODE / name), "--recipe", recipe.name, *arguments]


def model_cell(recipe: Recipe, model: str) -> Cell | None:
    """The cell that makes a model of the recipe; None when its weights are given."""
    spec = recipe.models[model]
    if spec.extract is None:
        return None
    parent = model_cell(recipe, spec.extract.teacher)
    weights = recipe.models[spec.extract.teacher].weights
    return Cell(
        recipe=recipe,
        stage="extract",
        name=model,
        identity={"model": model},
        settings=spec.extract.model_dump(mode="json") | {"teacher_weights": weights},
        command=_script("extract_student.py", recipe, "--model", model),
        parents=(parent,) if parent else (),
        makes_model=True,
    )


def checkpoint(recipe: Recipe, model: str) -> str | Path:
    """What `from_pretrained` reads for a model of the recipe."""
    cell = model_cell(recipe, model)
    return cell.model_folder if cell else recipe.models[model].weights


def finetune_cell(recipe: Recipe, model: str, task_name: str, seed: int) -> Cell:
    """Fine-tuning of a model on a task with a seed, and its evaluation."""
    task, parent = get_task(task_name), model_cell(recipe, model)
    name = f"{model}-{task_name}-{seed}"
    arguments = ("--model", model, "--task", task_name, "--seed", str(seed))
    folder = recipe.folder / "predictions"
    return Cell(
        recipe=recipe,
        stage="finetune",
        name=name,
        identity={"model": model, "task": task_name, "seed": seed},
        settings=recipe.finetune_for(task_name).model_dump(mode="json")
        | {"weights": recipe.models[model].weights},
        command=_script("finetune.py", recipe, *arguments),
        parents=(parent,) if parent else (),
        data=tuple((task.dataset, split) for split in (task.train_split, *task.eval_splits)),
        outputs=tuple(folder / f"{name}-{split}.parquet" for split in task.eval_splits),
    )


def benchmark_cell(recipe: Recipe, stage: str) -> Cell:
    """One of the benchmark's stages: size_speed, inference_speed, training_speed."""
    settings = recipe.training_speed if stage == "training_speed" else recipe.speed
    return Cell(
        recipe=recipe,
        stage="benchmark",
        name=stage,
        identity={"benchmark": stage},
        settings=settings.model_dump(mode="json"),
        command=_script("benchmark.py", recipe, "--stage", stage),
    )


def evidence_cells(recipe: Recipe) -> list[Cell]:
    """Every cell whose record the report reads."""
    stages = ["size_speed", "inference_speed"]
    if recipe.training_speed is not None:
        stages.append("training_speed")
    return [
        *(cell for model in recipe.models if (cell := model_cell(recipe, model))),
        *(
            finetune_cell(recipe, model, task, seed)
            for seed in recipe.seeds
            for task in recipe.tasks
            for model in recipe.models
        ),
        *(benchmark_cell(recipe, stage) for stage in stages),
    ]


def cells_to_run(recipe: Recipe) -> dict[str, Cell]:
    """Cells without a current record, and the parents whose weights they need, by record path."""
    needed: dict[str, Cell] = {}

    def need(cell: Cell) -> None:
        needed[cell.key] = cell
        for parent in cell.parents:
            if not parent.has_weights():
                need(parent)

    for cell in evidence_cells(recipe):
        if not cell.is_recorded():
            need(cell)
    return needed


def _notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def publication_commands(recipe: Recipe) -> dict[str, tuple[list[str], list[str]]]:
    """What turns records into the report: name -> (names that come first, command)."""
    commands = {"claims": ([], _script("claims.py", recipe))}
    for notebook in _notebooks():
        executed = recipe.folder / "notebooks" / notebook.name
        papermill = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(ROOT)]
        commands[notebook.stem] = (
            ["claims"],
            [*papermill, "-p", "recipe", recipe.name, str(notebook), str(executed)],
        )
    commands["report"] = (list(commands), _script("build_report.py", recipe))
    return commands


def publication_key(recipe: Recipe) -> str:
    """Hash of the files that decide tables, figures, report and poster; "" if one is missing."""
    paths = [
        *(cell.record for cell in evidence_cells(recipe)),
        *sorted(recipe.folder.glob("*/failed/*.json")),
        *_notebooks(),
        *sorted((ROOT / "report").glob("*.typ")),
        *sorted((ROOT / "poster").glob("*.typ")),
        RECIPES / "claims.yaml",
        CODE / "claims.py",
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
