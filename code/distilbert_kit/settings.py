"""The settings that training is made of: optimisation, texts, losses; all keys checked."""

import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from .errors import UserError


def _check_file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ValueError(
            f"{name!r} becomes the name of a folder: use at most 64 letters, digits, '_', '-' and "
            "'.', a letter or digit first"
        )
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]  # no path, and the same on any system
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both take
Beta = Annotated[float, Field(ge=0, lt=1)]
Item = TypeVar("Item")


def _check_distinct(items: list[Item]) -> list[Item]:
    if repeated := [item for number, item in enumerate(items) if item in items[:number]]:
        raise ValueError(f"{repeated[0]!r} stands there twice")
    return items


Distinct = Annotated[list[Item], AfterValidator(_check_distinct)]  # a seed twice is no second run


def read_seed(text: str) -> int:
    """A seed of the command line; UserError when it is none."""
    try:
        return TypeAdapter(Seed).validate_python(text)
    except ValidationError:
        raise UserError(f"seed {text}: give a whole number from 0 to {2**32 - 1:,}") from None


def later_field(default: Any) -> Any:
    """A field added later: not dumped at its default, so that the keys of earlier records hold."""
    return Field(default=default, exclude_if=lambda value: value == default)


class Strict(BaseModel):
    """A part of a recipe: unknown keys, infinite numbers and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Precision = Literal["auto", "fp32", "bf16", "fp16"]


class TrainSettings(Strict):
    """Optimisation of one run. All processes together share the micro-batches of an update."""

    epochs: float = Field(gt=0, le=10_000)
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0, description="most examples in a micro-batch")
    batch_tokens: int | None = Field(
        default=None, gt=0, description="most padded tokens in a micro-batch"
    )
    accumulation: int = Field(
        default=1, gt=0, description="micro-batches in an update, over all processes"
    )
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Precision = Field(
        default="auto",
        description="auto: bf16 where the device multiplies it in hardware, else fp32",
    )


class TextSettings(Strict):
    """How texts become tokens; longer ones are cut to `max_length`."""

    max_length: int = Field(default=512, ge=8, le=512)
    truncation: Literal["head", "head_tail"] = later_field("head")

    def with_length(self, max_length: int, special_tokens: int) -> Self:
        """The same with another `max_length`; `special_tokens`: the tokenizer's in a pair."""
        return self.model_validate(self.model_dump() | {"max_length": max_length})


class WindowSettings(TextSettings):
    """Question and context as windows of `max_length` tokens; values of BERT on SQuAD v1.1.

    `stride` is the distance between the starts of two windows, as in the original code. In today's
    transformers, the stride is the overlap of two windows.
    """

    max_length: int = Field(default=384, ge=8, le=512)
    stride: int = Field(default=128, gt=0, description="tokens of the context")
    question_length: int = Field(default=64, gt=0, description="tokens; longer questions are cut")
    answer_length: int = Field(default=30, gt=0, description="most tokens in an answer")

    @model_validator(mode="after")
    def _no_gap(self) -> "WindowSettings":
        if self.truncation != "head":
            raise ValueError(f"truncation {self.truncation} is for texts: windows cut nothing off")
        try:
            self.check_room(3)  # BERT's [CLS] and two [SEP]; others are looked at with the texts
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    def with_length(self, max_length: int, special_tokens: int) -> Self:
        """As of texts; short windows overlap by half, where the stride would skip text."""
        room = max_length - self.question_length - special_tokens
        stride = self.stride if self.stride <= room else max(1, room // 2)
        return self.model_validate(self.model_dump() | {"max_length": max_length, "stride": stride})

    def check_room(self, special_tokens: int) -> None:
        """Raise UserError if windows with so many special tokens would leave out text."""
        room = self.max_length - self.question_length - special_tokens
        if self.stride > room:
            raise UserError(
                f"stride {self.stride} skips text: a window of {self.max_length} tokens has room "
                f"for {room} beside a question of {self.question_length}; raise max_length"
            )


class FinetuneSettings(TrainSettings, TextSettings):
    """Fine-tuning on a task; `train_split` takes the place of the task's official one."""

    train_split: str | None = later_field(None)


class QuestionAnsweringSettings(WindowSettings, FinetuneSettings):
    """Fine-tuning on extractive question answering."""


FINETUNE_SETTINGS = {
    "classification": FinetuneSettings,
    "question_answering": QuestionAnsweringSettings,
}


class MaskedLMSettings(TrainSettings):
    """Masked-LM training and distillation."""

    checkpoint_every: int = Field(default=200, gt=0, description="updates")
    validate_every: Annotated[int, Field(gt=0)] | None = later_field(None)  # updates


class CorpusSettings(Strict):
    """Text for masked-LM training and distillation, and how it is masked."""

    source: list[str] = Field(min_length=1, description="as prepare_corpus.py --source")
    limit_tokens: int | None = Field(default=None, gt=0)
    validation_fraction: float = Field(default=0.01, gt=0, lt=1)
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    mask_smoothing: float = Field(default=0.7, ge=0, description="0: all tokens alike")
    seed: Seed = 56


class LossWeights(Strict):
    """The triple loss; the defaults are the paper's (transformers#2013)."""

    ce: float = Field(default=5.0, ge=0)
    mlm: float = Field(default=2.0, ge=0)
    cos: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    ce_rows: Literal["all", "masked"] = "all"

    @model_validator(mode="after")
    def _some(self) -> "LossWeights":
        if self.ce == self.mlm == self.cos == 0:
            raise ValueError("all weights of the loss are 0; raise one of ce, mlm, cos")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether a term reads the teacher; without one the text alone teaches."""
        return self.ce > 0 or self.cos > 0

    @property
    def on_all_tokens(self) -> bool:
        """Whether the head reads all tokens, for ce; else the masked ones alone."""
        return self.ce > 0 and self.ce_rows == "all"


class SoftTargets(Strict):
    """Fine-tuning with a task teacher: soft_weight x soft + (1 - soft_weight) x hard loss.

    The defaults are those of the original code's second step on SQuAD.
    """

    temperature: float = Field(default=2.0, gt=0)
    soft_weight: float = Field(default=0.5, ge=0, le=1)
