"""Recipes: one YAML file each, every key checked; an unknown or mistyped key is an error."""

import difflib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from .errors import UserError
from .paths import RECIPES, RESULTS
from .records import Scale
from .tasks import get_task


class Strict(BaseModel):
    """A part of a recipe: unknown keys are errors."""

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
    """Fine-tuning on a task; longer texts are cut to `max_length` tokens."""

    max_length: int = Field(512, ge=8, le=512)


class MaskedLMSettings(TrainSettings):
    """Masked-LM training and distillation."""

    checkpoint_every: int = Field(200, gt=0, description="updates")


class CorpusSettings(Strict):
    """Text for masked-LM training and distillation, and how it is masked."""

    source: list[str] = Field(min_length=1, description="as prepare_corpus.py --source")
    limit_tokens: int | None = Field(None, gt=0)
    validation_fraction: float = Field(0.01, gt=0, lt=1)
    mask_probability: float = Field(0.15, gt=0, lt=1)
    mask_smoothing: float = Field(0.7, ge=0, description="0: all tokens alike")
    seed: int = 56


class LossWeights(Strict):
    """The triple loss; the defaults are the paper's (transformers#2013)."""

    ce: float = Field(5.0, ge=0)
    mlm: float = Field(2.0, ge=0)
    cos: float = Field(1.0, ge=0)
    temperature: float = Field(2.0, gt=0)
    ce_rows: Literal["all", "masked"] = "all"


class Extract(Strict):
    """A student cut from the layers of a teacher, not trained; or of that shape, drawn anew."""

    teacher: str
    layers: list[int] = Field(min_length=1)
    vocabulary_transform: bool = True
    random: bool = False


class Pretrain(Strict):
    """Masked-LM training from another model (`start`) or from scratch (`shape`, a preset)."""

    start: str | None = None
    shape: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Pretrain":
        if (self.start is None) == (self.shape is None):
            raise ValueError("give exactly one of start, shape")
        return self


class Distill(Strict):
    """Distillation of a student, itself a model of the recipe, from a teacher."""

    teacher: str
    student: str
    loss: LossWeights = LossWeights()


class ModelSpec(Strict):
    """Where a model comes from: given weights, or a cut from another model of the recipe."""

    label: str
    weights: str | None = None
    extract: Extract | None = None
    pretrain: Pretrain | None = None
    distill: Distill | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        origins = ("weights", "extract", "pretrain", "distill")
        if sum(getattr(self, origin) is not None for origin in origins) != 1:
            raise ValueError(f"give exactly one of {', '.join(origins)}")
        return self

    @property
    def parents(self) -> list[str]:
        """The models of the recipe that this one is made from."""
        spec = self.extract or self.pretrain or self.distill
        fields = ("teacher", "student", "start")
        return [name for field in fields if (name := getattr(spec, field, None))]


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


class DistillationSpeedSettings(Strict):
    """A distillation step at paper size beside the textbook's, and both on the recipe's corpus."""

    rounds: int = Field(ge=2)
    updates: int = Field(1, gt=0, description="in a round")
    batch_size: int = Field(16, gt=0)
    length: int = Field(128, ge=8, le=512, description="tokens, all of them real")
    sequences: int = Field(gt=0, description="of the corpus, evenly by length")
    batch_tokens: int = Field(1024, ge=512, description="most padded tokens in a bucket")
    corpus_rounds: int = Field(2, ge=2)


class CorpusSpeedSettings(Strict):
    """Corpus preparation: speed beside a slow tokenizer, memory at two sizes of the text."""

    source: str = Field("docs", description="as prepare_corpus.py --source")
    compared_mb: float = Field(gt=0, description="text for both, 10**6 bytes")
    memory_mb: list[float] = Field(min_length=2, description="from small to large")
    rounds: int = Field(2, ge=2)


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
    corpus: CorpusSettings | None = None
    pretrain: MaskedLMSettings | None = None
    distill: MaskedLMSettings | None = None
    finetune: FinetuneSettings
    finetune_tasks: dict[str, dict] = {}
    speed: SpeedSettings
    training_speed: TrainingSpeedSettings | None = None
    distillation_speed: DistillationSpeedSettings | None = None
    corpus_speed: CorpusSpeedSettings | None = None
    _file: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _names_exist(self) -> "Recipe":
        for name in (*self.tasks, *self.finetune_tasks):
            get_task(name)
        for name in (self.teacher, self.student):
            if name not in self.models:
                raise ValueError(f"{name!r} is not among the models")
        for name, spec in self.models.items():
            for parent in spec.parents:
                if parent not in self.models:
                    raise ValueError(f"models.{name}: {parent!r} is not among the models")
            for stage in ("pretrain", "distill"):
                if getattr(spec, stage) and not (self.corpus and getattr(self, stage)):
                    raise ValueError(f"models.{name}: {stage} needs the keys corpus and {stage}")
        if self.distillation_speed and not self.corpus:
            raise ValueError("distillation_speed needs the key corpus")
        for task in self.finetune_tasks:
            self.finetune_for(task)
        return self

    def finetune_for(self, task: str) -> FinetuneSettings:
        """Fine-tuning settings of a task: the common ones with the task's own on top."""
        return FinetuneSettings(**self.finetune.model_dump() | self.finetune_tasks.get(task, {}))

    @property
    def argument(self) -> str:
        """What a script is given as --recipe: the name, or the file of a recipe from elsewhere."""
        return self.name if self._file.parent == RECIPES else str(self._file.resolve())

    @property
    def folder(self) -> Path:
        """Where everything of this recipe is written."""
        return RESULTS / self.name


def _explain(error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return UserError(f"{where}: {key or 'recipe'}: {first['msg']}")
    models = [Recipe, *Strict.__subclasses__()]
    known = [name for model in models for name in model.model_fields]
    close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
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
        recipe = Recipe.model_validate(content)
        recipe._file = path
        return recipe
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: not YAML ({error})") from None
    except ValidationError as error:
        raise _explain(error, path.name) from None
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None
