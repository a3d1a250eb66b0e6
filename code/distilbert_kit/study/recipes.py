"""Recipes: one YAML file each, every key checked; an unknown or mistyped key is an error."""

import difflib
import graphlib
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from ..data.tasks import GLUE, get_task
from ..errors import UserError, first_problem
from ..foreign import read_yaml
from ..paths import RECIPES, RESULTS
from ..settings import (
    FINETUNE_SETTINGS,
    CorpusSettings,
    Distinct,
    FileName,
    FinetuneSettings,
    MaskedLMSettings,
    QuestionAnsweringSettings,
    Seed,
    Strict,
)
from .records import Scale
from .settings import (
    CorpusSpeedSettings,
    DistillationSpeedSettings,
    LatencySettings,
    QuestionAnsweringSpeedSettings,
    ShapeSpeedSettings,
    SpeedSettings,
    TrainingSpeedSettings,
)
from .specs import CrossEvaluation, HeldOut, KeptModels, ModelSpec, Tuning

MOST_GENERATIONS = 8  # of models made from models


class Recipe(Strict):
    """A whole experiment: models, tasks, seeds, settings."""

    name: FileName
    title: str
    scale: Scale
    seeds: Distinct[Seed] = Field(min_length=1)
    models: dict[FileName, ModelSpec]
    teacher: str
    student: str
    tasks: Distinct[str]
    task_seeds: dict[str, Annotated[Distinct[Seed], Field(min_length=1)]] = Field(
        default_factory=dict, description="where they are not `seeds`"
    )
    macro: Distinct[str] = Field(
        default_factory=list, description="tasks of the mean score (default: those of GLUE)"
    )
    tuning: Tuning | None = None
    held_out: HeldOut | None = None
    corpus: CorpusSettings | None = None
    pretrain: MaskedLMSettings | None = None
    distill: MaskedLMSettings | None = None
    finetune: FinetuneSettings
    finetune_tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    speed: SpeedSettings | None = None
    shape_speed: ShapeSpeedSettings | None = None
    training_speed: TrainingSpeedSettings | None = None
    distillation_speed: DistillationSpeedSettings | None = None
    corpus_speed: CorpusSpeedSettings | None = None
    question_answering_speed: QuestionAnsweringSpeedSettings | None = None
    latency: LatencySettings | None = None
    # Exported, quantised and measured; shown in the browser by demo.py, side by side by task.
    quantize: list[KeptModels] = Field(default_factory=list)
    demo: list[KeptModels] = Field(default_factory=list)
    cross_evaluation: CrossEvaluation | None = None
    _file: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _names_exist(self) -> "Recipe":
        for name in (*self.tasks, *self.finetune_tasks):
            get_task(name)
        for key in ("task_seeds", "macro"):
            if unknown := set(getattr(self, key)) - set(self.tasks):
                raise ValueError(f"{key}: {unknown.pop()!r} is not among the tasks")
        if self.tuning and self.held_out:
            raise ValueError("held_out: the trials of the key tuning are such a comparison already")
        if self.tuning:
            self._check_trials("tuning", self.tuning.tasks, list(self.models))
        if self.held_out:
            self._check_trials("held_out", self.held_out.tasks, self.held_out.models)
        for name in (self.teacher, self.student):
            if name not in self.models:
                raise ValueError(f"{name!r} is not among the models")
        for name, spec in self.models.items():
            self._check_model(name, spec)
        if self.distillation_speed and not self.corpus:
            raise ValueError("distillation_speed needs the key corpus")
        self._check_descent({name: spec.parents for name, spec in self.models.items()})
        for task in (*self.tasks, *self.finetune_tasks):
            if self.train_split(task) in get_task(task).eval_splits:
                raise ValueError(f"{task}: train_split {self.train_split(task)!r} is a test split")
        for stage in ("quantize", "demo"):
            for asked in getattr(self, stage):
                task = get_task(asked.task)
                if stage == "quantize" and task.kind != "classification":
                    raise ValueError(f"quantize: {task.name!r} is no classification or regression")
                for name in asked.models:
                    if name not in self.models:
                        raise ValueError(f"{stage}: {name!r} is not among the models")
        if self.cross_evaluation:
            self._check_cross_evaluation(self.cross_evaluation)
        return self

    def _check_model(self, name: str, spec: ModelSpec) -> None:
        for parent in spec.parents:
            if parent not in self.models:
                raise ValueError(f"models.{name}: {parent!r} is not among the models")
            teaches = spec.task_distill and parent == spec.task_distill.teacher
            if self.models[parent].task_distill and not teaches:
                raise ValueError(
                    f"models.{name}: {parent!r} exists for a task only; name its student"
                )
        for stage in ("pretrain", "distill"):
            if getattr(spec, stage) and not (self.corpus and getattr(self, stage)):
                raise ValueError(f"models.{name}: {stage} needs the keys corpus and {stage}")
        if spec.distill:
            self.distill_for(name)
        if spec.each_seed and 0 not in self.seeds_of_model(name):
            raise ValueError(f"models.{name}: each_seed needs seed 0, which has the model's name")
        task = f"-(?:{'|'.join(map(re.escape, self.tasks))})"
        of = f"(?:{task})?" if spec.each_seed else task
        runs = re.compile(rf"{re.escape(name)}{of}-\d+(?:-int8)?")
        if other := next(filter(runs.fullmatch, self.models), None):
            raise ValueError(f"models.{other}: the name of a run of {name!r}; choose another")
        if unknown := set(spec.tasks or ()) - set(self.tasks):
            raise ValueError(f"models.{name}: {unknown.pop()!r} is not among the tasks")
        if bare := [t for t in self.tasks if not self.seeds_of(name, t)]:
            raise ValueError(f"models.{name}: seeds has none of those of {bare[0]}")

    def _check_descent(self, parents: dict[str, list[str]]) -> None:
        """Refuse circles, and chains that a recipe of two parents each would double for ever."""
        generation: dict[str, int] = {}
        try:
            for name in graphlib.TopologicalSorter(parents).static_order():
                generation[name] = 1 + max((generation[p] for p in parents[name]), default=0)
        except graphlib.CycleError as error:
            raise ValueError(f"models: a circle of {' <- '.join(error.args[1])}") from None
        if late := next((n for n, number in generation.items() if number > MOST_GENERATIONS), None):
            raise ValueError(f"models.{late}: more than {MOST_GENERATIONS} generations of models")

    def _check_trials(self, key: str, tasks: list[str], models: list[str]) -> None:
        for name in tasks:
            if get_task(name).kind != "classification":
                raise ValueError(f"{key}: {name!r} is no classification or regression")
        for name in models:
            if name not in self.models:
                raise ValueError(f"{key}: {name!r} is not among the models")
            if self.models[name].task_distill:
                raise ValueError(f"models.{name}: {key} is for models without a teacher")

    def _check_cross_evaluation(self, asked: CrossEvaluation) -> None:
        for name in asked.models:
            if name not in self.models:
                raise ValueError(f"cross_evaluation: {name!r} is not among the models")
            for task in asked.tasks:
                if task not in self.tasks or name not in self.models_of(task):
                    raise ValueError(f"cross_evaluation: {name!r} is not fine-tuned on {task!r}")
        trained = [get_task(task) for task in asked.tasks]
        for name in asked.tested_on:
            if not any(get_task(name).shares_labels(task) for task in trained):
                raise ValueError(f"cross_evaluation: no task has the labels of {name!r}")

    def finetune_for(self, task: str) -> FinetuneSettings:
        """Fine-tuning settings: the common ones with the task's own on top."""
        kind = get_task(task).kind
        settings = FINETUNE_SETTINGS[kind]
        # These are of texts: a window with a question in it is longer, and all windows are read.
        texts_only = {"max_length", "truncation"} if kind == "question_answering" else None
        common = self.finetune.model_dump(exclude_unset=True, exclude=texts_only)
        return settings(**common | self.finetune_tasks.get(task, {}))

    def shown_settings(self, task: str) -> dict:
        """`finetune_for` ready for JSON, with "tuned" for a learning rate that is still to find."""
        tuned = {"learning_rate": "tuned"} if self.tuning else {}
        return self.finetune_for(task).model_dump(mode="json") | tuned

    def seeds_of(self, model: str, task: str) -> list[int]:
        """The seeds with which a model is fine-tuned on a task."""
        own = self.models[model].seeds
        seeds = self.task_seeds.get(task, self.seeds)
        return seeds if own is None else [seed for seed in seeds if seed in own]

    def seeds_of_model(self, model: str) -> list[int]:
        """The seeds for which a model is made: those of its tasks, or all where it has none."""
        tasks = [task for task in self.tasks if model in self.models_of(task)]
        return sorted({seed for task in tasks or self.tasks for seed in self.seeds_of(model, task)})

    def train_split(self, task: str) -> str:
        """The split to train on: the recipe's choice, or the task's official one."""
        return self.finetune_for(task).train_split or get_task(task).train_split

    @property
    def kept_names(self) -> set[str]:
        """The names of the fine-tuning cells whose weights another stage reads."""
        crossed = [self.cross_evaluation] if self.cross_evaluation else []
        return {name for asked in (*self.quantize, *self.demo, *crossed) for name in asked.names}

    @property
    def task_teachers(self) -> set[str]:
        """The models that teach another on a task."""
        return {spec.task_distill.teacher for spec in self.models.values() if spec.task_distill}

    def body(self, model: str) -> str:
        """The model whose weights `model` starts from on a task: itself, or its student."""
        spec = self.models[model].task_distill
        return spec.student if spec else model

    def tokenizer_of(self, model: str) -> str:
        """Where a model's tokenizer is from: the given weights that it descends from.

        A model from scratch has the presets' vocabulary, that of bert-base-uncased.
        """
        spec = self.models[self.body(model)]
        if spec.weights or not spec.parents:
            return spec.weights or "bert-base-uncased"
        return self.tokenizer_of(spec.parents[0])

    def distill_for(self, model: str) -> MaskedLMSettings:
        """Distillation settings of a model: the common ones with its own on top."""
        spec = self.models[model].distill
        return MaskedLMSettings(
            **self.require("distill").model_dump() | (spec.training if spec else {})
        )

    def models_of(self, task: str) -> list[str]:
        """The models that are fine-tuned on a task."""
        return [
            name for name, spec in self.models.items() if spec.tasks is None or task in spec.tasks
        ]

    @property
    def macro_tasks(self) -> list[str]:
        """What the mean score runs over: `macro`, the recipe's tasks of GLUE, or all of them."""
        return self.macro or [task for task in self.tasks if task in GLUE] or list(self.tasks)

    def require(self, key: str) -> Any:
        """A part that a recipe may leave out; UserError when this one does."""
        if (found := getattr(self, key)) is None:
            raise UserError(f"recipe {self.name} has no {key}: add that key to it")
        return found

    @property
    def main_models(self) -> list[str]:
        """The models fine-tuned on all `macro_tasks`; the others are controls on some."""
        fine_tuned = [set(self.models_of(task)) for task in self.macro_tasks]
        return [name for name in self.models if all(name in some for some in fine_tuned)]

    @property
    def control(self) -> str | None:
        """What the student was before its distillation; None if it was not distilled."""
        spec = self.models[self.student].distill
        return spec.student if spec else None

    @property
    def argument(self) -> str:
        """What a script is given as --recipe: the name, or the file of a recipe from elsewhere."""
        own = self._file == RECIPES / f"{self.name}.yaml"
        return self.name if own else str(self._file.resolve())

    @property
    def file(self) -> Path:
        """The file that it was read from."""
        return self._file

    @property
    def folder(self) -> Path:
        """Where everything of this recipe is written."""
        return RESULTS / self.name


def _known_keys() -> set[str]:
    """The keys of a recipe, of its parts, and of the tasks' own settings."""
    schemas = [kind.model_json_schema() for kind in (Recipe, QuestionAnsweringSettings)]
    parts = [part for schema in schemas for part in (schema, *schema.get("$defs", {}).values())]
    return {name for part in parts for name in part["properties"]}


def _explain(error: ValidationError, where: str) -> UserError:
    # A key that is misspelt is missing too: the unknown one tells more.
    unknown_keys = (found for found in error.errors() if found["type"] == "extra_forbidden")
    if (first := next(unknown_keys, None)) is None:
        return UserError(f"{where}: {first_problem(error, 'recipe')}")
    unknown = str(first["loc"][-1])  # it may be known in another place
    close = difflib.get_close_matches(unknown, sorted(_known_keys() - {unknown}), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "remove it"
    key = ".".join(map(str, first["loc"]))
    return UserError(f"{where}: unknown key {key!r}; {hint}")


def recipe_path(name_or_file: str | Path) -> Path:
    """`recipes/<name>.yaml`, or the file itself; UserError when there is none."""
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{path.name}.yaml" if path.name == str(name_or_file) else path
    if not path.is_file():
        names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
        raise UserError(f"{path.name}: no such recipe; choose from {', '.join(names)}")
    return path


def load_recipe(name_or_file: str | Path) -> Recipe:
    """Read `recipes/<name>.yaml` or a file; UserError names a missing, unknown or wrong key."""
    path = recipe_path(name_or_file)
    try:
        content = read_yaml(path)
        if content is None:
            raise UserError("empty; begin with a copy of code/examples/recipe.yaml")
        recipe = Recipe.model_validate(content)
        recipe._file = path
    except ValidationError as error:
        raise _explain(error, path.name) from None
    except UserError as error:
        raise UserError(f"{path.name}: {str(error).removeprefix(f'{path}: ')}") from None
    own = RECIPES / f"{recipe.name}.yaml"
    if own.is_file() and not own.samefile(path):
        raise UserError(
            f"{path.name}: name: {recipe.name!r} is a recipe of the project; this one would "
            "overwrite its results; give yours another name"
        )
    return recipe
