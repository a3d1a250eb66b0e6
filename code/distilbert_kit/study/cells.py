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

from ..data.listed import expected_split
from ..data.tasks import get_task
from ..errors import UserError
from ..files import content_key
from ..paths import CODE
from .recipes import Recipe
from .records import is_current, read_record


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
    outputs: tuple[Path, ...] = field(default=())

    @cached_property
    def key(self) -> str:
        """Hash of what decides the result."""
        hashes = [expected_split(*split)["sha256"] for split in self.data]
        parents = [parent.key for parent in self.parents]
        return content_key([self.stage, self.identity, self.settings, parents, hashes])

    @property
    def record(self) -> Path:
        """Where its record is."""
        return self.recipe.folder / self.stage / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """What the cell makes beside its record: weights or a corpus, not in git."""
        kind = "corpus" if self.stage == "corpus" else f"models/{self.name}"
        return self.recipe.folder / kind

    @property
    def checkpoints(self) -> Path:
        """Where an unfinished training keeps its state."""
        return self.recipe.folder / "checkpoints" / self.name

    def predictions(self, split: str) -> Path:
        """Parquet file of the per-example predictions on a split."""
        return self.recipe.folder / "predictions" / f"{self.name}-{split}.parquet"

    @property
    def origins(self) -> list[str]:
        """The given weights that it descends from."""
        own = self.settings.get("weights") or {}
        own = {own} if isinstance(own, str) else set(own.values())
        return sorted(own.union(*(parent.origins for parent in self.parents)))

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

    def stamp_folder(self) -> None:
        """Leave the record, and of weights a model card, with what was made.

        The record tells later which cell that is from.
        """
        shutil.copyfile(self.record, self.folder / "record.json")  # first: now the cell is done
        if self.stage != "corpus":
            from .model_card import write_model_card

            write_model_card(self.folder, read_record(self.record), self.origins)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def is_recorded(self) -> bool:
        """Whether the record is there and current."""
        return is_current(self.record, self.key) and all(path.exists() for path in self.outputs)

    def has_folder(self) -> bool:
        """Whether what it makes is here too, from exactly this cell."""
        return is_current(self.folder / "record.json", self.key)


def _script(name: str, recipe: Recipe, *arguments: str) -> list[str]:
    return [sys.executable, str(CODE / name), "--recipe", recipe.argument, *arguments]


def _data_of(sources: list[str]) -> tuple[tuple[str, str], ...]:
    """(data set, split) of the sources that `data/sources.yaml` lists."""
    return tuple(
        tuple(source.removeprefix("data:").rsplit("/", 1))
        for source in sources
        if source.startswith("data:")
    )


def corpus_cell(recipe: Recipe) -> Cell:
    """Preparation of the recipe's corpus."""
    settings = recipe.corpus.model_dump(
        mode="json", include={"source", "limit_tokens", "validation_fraction"}
    )
    return Cell(
        recipe=recipe,
        stage="corpus",
        name="corpus",
        identity={"corpus": recipe.name},
        settings=settings,
        command=_script("prepare_corpus.py", recipe),
        data=_data_of(recipe.corpus.source),
    )


_MODEL_SCRIPTS = {
    "extract": "extract_student.py",
    "pretrain": "pretrain.py",
    "distill": "distill.py",
}


def model_cell(recipe: Recipe, model: str) -> Cell | None:
    """The cell that makes a model of the recipe; None when its weights are given.

    Of a `task_distill` model it is that of its student: the teaching is a part of fine-tuning.
    """
    if model not in recipe.models:
        raise UserError(
            f"recipe {recipe.name} has no model {model!r}: choose from {', '.join(recipe.models)}"
        )
    spec = recipe.models[model]
    if spec.weights is not None:
        return None
    if spec.task_distill:
        return model_cell(recipe, spec.task_distill.student)
    stage = next(stage for stage in _MODEL_SCRIPTS if getattr(spec, stage))
    settings = getattr(spec, stage).model_dump(mode="json")
    parents = [cell for parent in spec.parents if (cell := model_cell(recipe, parent))]
    weights = {name: recipe.models[name].weights for name in spec.parents}
    settings |= {"weights": {name: given for name, given in weights.items() if given}}
    if stage != "extract":
        parents.append(corpus_cell(recipe))
        training = recipe.pretrain if stage == "pretrain" else recipe.distill_for(model)
        settings |= {
            "corpus": recipe.corpus.model_dump(mode="json"),
            "training": training.model_dump(mode="json"),
        }
    return Cell(
        recipe=recipe,
        stage=stage,
        name=model,
        identity={"model": model},
        settings=settings,
        command=_script(_MODEL_SCRIPTS[stage], recipe, "--model", model),
        parents=tuple(parents),
    )


def checkpoint(recipe: Recipe, model: str) -> str | Path:
    """What `from_pretrained` reads for a model of the recipe."""
    cell = model_cell(recipe, model)
    return cell.folder if cell else recipe.models[recipe.body(model)].weights


def teacher_cell(recipe: Recipe, model: str, task_name: str) -> Cell | None:
    """The fine-tuning that makes the task teacher of a model: one for all its seeds."""
    spec = recipe.models[model].task_distill
    return spec and finetune_cell(recipe, spec.teacher, task_name, recipe.seeds[0])


def finetune_cell(recipe: Recipe, model: str, task_name: str, seed: int) -> Cell:
    """Fine-tuning of a model on a task with a seed, and its evaluation."""
    task, parent = get_task(task_name), model_cell(recipe, model)
    spec, taught_by = recipe.models[model], teacher_cell(recipe, model, task_name)
    name = f"{model}-{task_name}-{seed}"
    arguments = ["--model", model, "--task", task_name, "--seed", str(seed)]
    teaches = seed == recipe.seeds[0] and model in recipe.task_teachers
    if teaches or name in recipe.kept_names:
        arguments.append("--save")  # another cell reads the weights
    folder = recipe.folder / "predictions"
    settings = recipe.finetune_for(task_name).model_dump(mode="json")
    settings |= {"weights": recipe.models[recipe.body(model)].weights}
    if spec.task_distill:
        settings |= {"task_distill": spec.task_distill.model_dump(mode="json")}
    return Cell(
        recipe=recipe,
        stage="finetune",
        name=name,
        identity={"model": model, "task": task_name, "seed": seed},
        settings=settings,
        command=_script("finetune.py", recipe, *arguments),
        parents=tuple(cell for cell in (parent, taught_by) if cell),
        data=tuple((task.dataset, s) for s in (recipe.train_split(task_name), *task.eval_splits)),
        outputs=tuple(folder / f"{name}-{split}.parquet" for split in task.eval_splits),
    )


def quantize_cell(recipe: Recipe, model: str, task_name: str, seed: int) -> Cell:
    """int8 and ONNX versions of a fine-tuned model, measured beside it."""
    parent, task = finetune_cell(recipe, model, task_name, seed), get_task(task_name)
    arguments = ("--model", model, "--task", task_name, "--seed", str(seed))
    speed = recipe.speed.model_dump(mode="json", include={"lengths", "length_repeats"})
    texts = recipe.finetune_for(task_name).model_dump(include={"max_length", "truncation"})
    return Cell(
        recipe=recipe,
        stage="quantize",
        name=f"{parent.name}-int8",
        identity=parent.identity,
        settings=speed | texts,
        command=_script("quantize.py", recipe, *arguments),
        parents=(parent,),
        data=tuple((task.dataset, split) for split in task.eval_splits),
    )


def cross_evaluation_cell(recipe: Recipe, model: str) -> Cell:
    """A model, fine-tuned on each of some tasks, on all of them that have the same labels."""
    asked = recipe.cross_evaluation
    tested = list(dict.fromkeys((*asked.tasks, *asked.tested_on)))
    texts = {"max_length", "truncation", "precision"}
    return Cell(
        recipe=recipe,
        stage="cross_evaluate",
        name=model,
        identity={"model": model, "seed": asked.seed},
        settings={
            "tasks": asked.tasks,
            "tested_on": {t: recipe.finetune_for(t).model_dump(include=texts) for t in tested},
        },
        command=_script("cross_evaluate.py", recipe, "--model", model),
        parents=tuple(finetune_cell(recipe, model, task, asked.seed) for task in asked.tasks),
        data=tuple(
            (get_task(t).dataset, split) for t in tested for split in get_task(t).eval_splits
        ),
    )


BENCHMARK_STAGES = (
    "size_speed",
    "inference_speed",
    "training_speed",
    "distillation_speed",
    "corpus_speed",
    "question_answering_speed",
)


def benchmark_stages(recipe: Recipe) -> list[str]:
    """The benchmark's stages in a recipe: the first two always, the others where it asks."""
    return [*BENCHMARK_STAGES[:2], *(s for s in BENCHMARK_STAGES[2:] if getattr(recipe, s))]


def benchmark_cell(recipe: Recipe, stage: str) -> Cell:
    """One of the benchmark's stages."""
    settings = recipe.speed if stage in BENCHMARK_STAGES[:2] else getattr(recipe, stage)
    settings, data, parents = settings.model_dump(mode="json"), (), ()
    if stage == "training_speed":
        settings |= {"finetune": recipe.finetune_for("sst2").model_dump(mode="json")}
        data = (("glue/sst2", "train"), ("glue/sst2", "validation"))
    if stage == "distillation_speed":
        settings |= {"masking": recipe.corpus.model_dump(mode="json")}
        parents = (corpus_cell(recipe),)
    if stage == "corpus_speed":
        data = _data_of([recipe.corpus_speed.source])
    if stage == "question_answering_speed":
        data = (("squad", "validation"),)
    return Cell(
        recipe=recipe,
        stage="benchmark",
        name=stage,
        identity={"benchmark": stage},
        settings=settings,
        data=data,
        parents=parents,
        command=_script("benchmark.py", recipe, "--stage", stage),
    )


def evidence_cells(recipe: Recipe) -> list[Cell]:
    """Every cell whose record the report reads."""
    return [
        *([corpus_cell(recipe)] if recipe.corpus else []),
        *(
            cell
            for model, spec in recipe.models.items()
            if not spec.task_distill and (cell := model_cell(recipe, model))
        ),
        *(
            finetune_cell(recipe, model, task, seed)
            for seed in recipe.seeds
            for task in recipe.tasks
            for model in recipe.models_of(task)
        ),
        *(
            quantize_cell(recipe, model, recipe.quantize.task, recipe.quantize.seed)
            for model in (recipe.quantize.models if recipe.quantize else ())
        ),
        *(
            cross_evaluation_cell(recipe, model)
            for model in (recipe.cross_evaluation.models if recipe.cross_evaluation else ())
        ),
        *(benchmark_cell(recipe, stage) for stage in benchmark_stages(recipe)),
    ]


def demo_cells(recipe: Recipe) -> list[Cell]:
    """The fine-tunings whose models demo.py shows; UserError when the recipe names none."""
    if recipe.demo is None:
        raise UserError(f"recipe {recipe.name} has no key demo: add it, or give folders to demo.py")
    task, seed = recipe.demo.task, recipe.demo.seed
    return [finetune_cell(recipe, model, task, seed) for model in recipe.demo.models]


def cells_to_run(recipe: Recipe, demo: bool = False) -> dict[str, Cell]:
    """Cells without a current record, and the parents whose weights they need, by key.

    With `demo` those without the weights that the demo shows, instead.
    """
    needed: dict[str, Cell] = {}

    def need(cell: Cell) -> None:
        needed[cell.key] = cell
        for parent in cell.parents:
            if not parent.has_folder():
                need(parent)

    for cell in demo_cells(recipe) if demo else evidence_cells(recipe):
        if not (cell.has_folder() if demo else cell.is_recorded()):
            need(cell)
    return needed
