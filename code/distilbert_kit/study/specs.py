"""What a recipe says of a model, and of what is done with models: the parts of its schema."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..settings import Distinct, LossWeights, Seed, SoftTargets, Strict, later_field

# How often a model is made says nothing of how: no dump has it, so no key.
EACH_SEED = Field(default=False, exclude=True)


class Extract(Strict):
    """A student cut from the layers of a teacher, not trained; or of that shape, drawn anew.

    With `each_seed`, the weights are drawn for every seed of fine-tuning.
    """

    teacher: str
    layers: list[int] = Field(min_length=1)
    vocabulary_transform: bool = True
    random: bool = False
    each_seed: bool = EACH_SEED

    @model_validator(mode="after")
    def _drawn(self) -> "Extract":
        if self.each_seed and not self.random:
            raise ValueError("each_seed needs random: true, as nothing else is drawn")
        return self


class Pretrain(Strict):
    """Masked-LM training from another model (`start`) or from scratch (`shape`, a preset).

    `train: head` is for weights that were published without a masked-LM head: it alone is trained,
    and the model that teaches is the one as published.
    """

    start: str | None = None
    shape: str | None = None
    train: Literal["all", "head"] = later_field("all")

    @model_validator(mode="after")
    def _one(self) -> "Pretrain":
        if (self.start is None) == (self.shape is None):
            raise ValueError("give exactly one of start, shape")
        if self.train == "head" and self.start is None:
            raise ValueError("train: head needs a start, whose other weights stay as they are")
        return self


class Distill(Strict):
    """Distillation of a student, itself a model of the recipe, from a teacher.

    `training` overrides keys of the recipe's `distill` for this model alone. With `each_seed`, it
    is distilled anew for every seed of fine-tuning, with a seed of its own. `freeze_positions`:
    the student's position embeddings stay as they are, as `sinusoidal_pos_embds` in the original
    training's configuration has it.
    """

    teacher: str
    student: str
    loss: LossWeights = LossWeights()
    freeze_positions: bool = later_field(False)
    training: dict[str, Any] = Field(default_factory=dict)
    each_seed: bool = EACH_SEED

    def same(self, other: "Distill | None", *apart_from: str) -> bool:
        """Whether another model is distilled alike, once or often, apart from some fields."""
        apart = set(apart_from)
        return other is not None and self.model_dump(exclude=apart) == other.model_dump(
            exclude=apart
        )


class TaskDistill(SoftTargets):
    """The weights of `student`, taught on every task by `teacher`, fine-tuned on it before."""

    student: str
    teacher: str


class ModelSpec(Strict):
    """Where a model comes from: given weights, or other models of the recipe.

    `tasks` are those of the recipe's tasks that it is fine-tuned on, `seeds` those of a task's
    seeds that it is fine-tuned with; all of them by default.
    """

    label: str
    tasks: Distinct[str] | None = None
    seeds: Annotated[Distinct[Seed], Field(min_length=1)] | None = None
    weights: str | None = None
    extract: Extract | None = None
    pretrain: Pretrain | None = None
    distill: Distill | None = None
    task_distill: TaskDistill | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        origins = ("weights", "extract", "pretrain", "distill", "task_distill")
        if sum(getattr(self, origin) is not None for origin in origins) != 1:
            raise ValueError(f"give exactly one of {', '.join(origins)}")
        return self

    @property
    def parents(self) -> list[str]:
        """The models of the recipe that this one is made from."""
        spec = self.extract or self.pretrain or self.distill or self.task_distill
        fields = ("teacher", "student", "start")
        return [name for field in fields if (name := getattr(spec, field, None))]

    @property
    def each_seed(self) -> bool:
        """Whether every seed of fine-tuning starts from weights of its own."""
        return any(made and made.each_seed for made in (self.extract, self.distill))


class Tuning(Strict):
    """The choice of a learning rate for every model, before its dev sets are looked at.

    Each model is fine-tuned on `tasks` with each rate, without a held-out fraction of the training
    rows; the rate with the highest mean score on the rows held out is the model's on all tasks.
    """

    learning_rates: Distinct[float] = Field(min_length=2)
    tasks: Distinct[str] = Field(min_length=1)
    held_out: float = Field(default=0.1, gt=0, lt=1, description="fraction of the training rows")
    seed: Seed = 0

    @model_validator(mode="after")
    def _names_differ(self) -> "Tuning":
        if len({f"{rate:g}" for rate in self.learning_rates}) < len(self.learning_rates):
            raise ValueError("learning_rates: two are alike in their first six digits")
        return self


class HeldOut(Strict):
    """Models side by side on training rows that are held out: a choice that reads no dev set.

    Each is fine-tuned with the recipe's settings, without a fraction of the rows.
    """

    models: Distinct[str] = Field(min_length=2)
    tasks: Distinct[str] = Field(min_length=1)
    fraction: float = Field(default=0.5, gt=0, lt=1, description="of the training rows")
    seed: Seed = 0


def finetune_name(model: str, task: str, seed: int) -> str:
    """The name of a model's fine-tuning on a task with a seed, in records and folders."""
    return f"{model}-{task}-{seed}"


class KeptModels(Strict):
    """Models that are fine-tuned on a task and saved, because another stage reads them."""

    models: Distinct[str] = Field(min_length=1)
    task: str
    seed: Seed = 0

    @property
    def names(self) -> list[str]:
        """The names of the fine-tuning cells whose weights are needed."""
        return [finetune_name(model, self.task, self.seed) for model in self.models]


class CrossEvaluation(Strict):
    """Fine-tuned models that are also tested on other tasks with the same labels.

    `tested_on` adds tasks to `tasks`, those that they were fine-tuned on.
    """

    models: Distinct[str] = Field(min_length=1)
    tasks: Distinct[str] = Field(min_length=1)
    tested_on: Distinct[str] = Field(default_factory=list)
    seed: Seed = 0

    @property
    def names(self) -> list[str]:
        """The names of the fine-tuning cells whose weights are needed."""
        return [finetune_name(model, t, self.seed) for model in self.models for t in self.tasks]
