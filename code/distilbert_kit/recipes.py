"""Recipes: one YAML file each, every key checked; an unknown or mistyped key is an error."""

import difflib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UserError
from .paths import RECIPES, RESULTS
from .records import Scale
from .tasks import get_task


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainSettings(Strict):
    """Optimisation of one run. One update reads `batch_size` examples."""

    epochs: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    batch_tokens: int | None = Field(None, gt=0, description="most padded tokens in a micro-batch")
    accumulation: int = Field(1, gt=0, description="micro-batches in an update")
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"


class FinetuneSettings(TrainSettings):
    max_length: int = Field(512, ge=8, le=512)


class Extract(Strict):
    """A student cut from the layers of a teacher, not trained."""

    teacher: str
    layers: list[int]
    vocabulary_transform: bool = True


class ModelSpec(Strict):
    """Where a model comes from: given weights, or a cut from another model of the recipe."""

    label: str
    weights: str | None = None
    extract: Extract | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        if (self.weights is None) == (self.extract is None):
            raise ValueError("give exactly one of weights, extract")
        return self

    @property
    def parent(self) -> str | None:
        """The model of the recipe that this one is made from."""
        return self.extract.teacher if self.extract else None


class SpeedSettings(Strict):
    """Table 3 again: batch size 1, CPU, the STS-B dev pairs."""

    pairs: int = Field(gt=0, le=1500, description="of the 1,500 dev pairs, evenly by length")
    passes: int = Field(gt=0)
    lengths: list[int] = [16, 32, 64, 128, 256, 512]
    length_repeats: int = Field(gt=0)
    file_order_pairs: int = Field(gt=0, le=1500)


class TrainingSpeedSettings(Strict):
    """Fine-tuning throughput beside transformers' Trainer."""

    examples: int = Field(gt=0)
    rounds: int = Field(gt=0)


class Recipe(Strict):
    """A whole experiment: models, tasks, seeds, settings."""

    name: str
    title: str
    scale: Scale
    seeds: list[int] = Field(min_length=1)
    models: dict[str, ModelSpec]
    teacher: str
    student: str
    tasks: list[str]
    finetune: FinetuneSettings
    finetune_tasks: dict[str, dict] = {}
    speed: SpeedSettings
    training_speed: TrainingSpeedSettings | None = None

    @model_validator(mode="after")
    def _names_exist(self) -> "Recipe":
        for name in (*self.tasks, *self.finetune_tasks):
            get_task(name)
        for name in (self.teacher, self.student):
            if name not in self.models:
                raise ValueError(f"{name!r} is not among the models")
        for name, spec in self.models.items():
            if spec.parent is not None and spec.parent not in self.models:
                raise ValueError(f"models.{name}: parent {spec.parent!r} is not among the models")
        for task in self.finetune_tasks:
            self.finetune_for(task)
        return self

    def finetune_for(self, task: str) -> FinetuneSettings:
        """Fine-tuning settings of a task: the common ones with the task's own on top."""
        return FinetuneSettings(**self.finetune.model_dump() | self.finetune_tasks.get(task, {}))

    @property
    def folder(self) -> Path:
        """Where everything of this recipe is written."""
        return RESULTS / self.name


def _explain(error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return UserError(f"{where}: {key or 'recipe'}: {first['msg']}")
    known = [name for model in (Recipe, *Strict.__subclasses__()) for name in model.model_fields]
    close = difflib.get_close_matches(str(first["loc"][-1]), known + list(TrainSettings.model_fields), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "remove it"
    return UserError(f"{where}: unknown key {key!r}; {hint}")


def load_recipe(name_or_file: str | Path) -> Recipe:
    """Read `recipes/<name>.yaml` or a file; UserError names a missing, unknown or wrong key."""
    path = Path(name_or_file)
    if path.suffix != ".yaml":
        path = RECIPES / f"{name_or_file}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in RECIPES.glob("*.yaml") if p.stem != "claims")
        raise UserError(f"{path.name}: no such recipe; choose from {', '.join(names)}")
    try:
        content = yaml.safe_load(path.read_text())
        return Recipe.model_validate(content)
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: not YAML ({error})") from None
    except ValidationError as error:
        raise _explain(error, path.name) from None
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None
