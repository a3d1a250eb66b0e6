"""A saved model, loaded once and ready to use: texts to labels, questions to answers.

    predict = load_predictor("my-model")
    predict(["a fine film", "a dull one"])
    predict(["Where is it?"], ["It is here."], n_best=3)

The last is for question-answering models; the head in the folder decides which it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.special import expit, softmax
from transformers import PreTrainedTokenizerBase

from ..data.batches import ClassificationDataset, TokenDataset
from ..errors import NonFiniteError, UserError, first_problem
from ..models.checkpoints import resolve_checkpoint
from ..models.hub_layout import HubModel, read_architecture
from ..models.model import DistilBERTForQuestionAnswering, DistilBERTForSequenceClassification
from ..models.tokenizers import get_tokenizer
from ..settings import WindowSettings
from ..training.classification import predict_logits
from ..training.question_answering import (
    QuestionAnsweringDataset,
    extract_answers,
    predict_spans,
)
from .export import load_fine_tuned

Texts = list[str] | list[tuple[str, str]]


@dataclass(frozen=True)
class Predictor(ABC):
    """A model with its tokenizer and its name; what it is given is for its kind to say."""

    model: HubModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @abstractmethod
    def __call__(self, *given: Any, **options: Any) -> list[dict[str, Any]]:
        """A row for each text or question."""

    def logits(self, predict: Callable[..., np.ndarray], dataset: TokenDataset) -> np.ndarray:
        """What `predict` gives of the model; UserError if it is not finite."""
        try:
            return predict(self.model, dataset)
        except NonFiniteError as error:  # nothing is trained here: the model is bad input
            raise UserError(f"{self.name}: {error}") from None


@dataclass(frozen=True)
class Classifier(Predictor):
    """Labels of texts, or of pairs of texts; longer ones are cut to `max_length` tokens."""

    max_length: int

    def __call__(self, texts: Texts) -> list[dict[str, Any]]:
        """For each text its label and the probabilities of all; of a regression its score.

        A multi-label model gives `labels`, those that are more probable than not, none or several.
        `truncated` says whether the text was cut.
        """
        dataset = ClassificationDataset(texts, None, self.tokenizer, self.max_length)
        logits = self.logits(predict_logits, dataset).astype(float)
        if self.model.num_labels == 1 and not self.model.multi_label:
            scores = logits[:, 0].tolist()
            return [
                {"text": text, "score": score, "truncated": cut}
                for text, score, cut in zip(texts, scores, dataset.cut, strict=True)
            ]
        shares = expit(logits) if self.model.multi_label else softmax(logits, axis=1)
        rows = []
        for text, values, cut in zip(texts, shares.tolist(), dataset.cut, strict=True):
            probabilities = dict(zip(self.model.labels, values, strict=True))
            label = max(probabilities, key=probabilities.__getitem__)
            best = {"label": label, "probability": probabilities[label]}
            if self.model.multi_label:
                best["labels"] = [name for name, share in probabilities.items() if share > 0.5]
            rows.append({"text": text, **best, "probabilities": probabilities, "truncated": cut})
        return rows


@dataclass(frozen=True)
class Answerer(Predictor):
    """Answers to questions, each cut from its context, which may be long."""

    settings: WindowSettings

    def __call__(
        self, questions: list[str], contexts: list[str], n_best: int = 1, where: str = "input"
    ) -> list[dict[str, Any]]:
        """For each question its best answers, with where they are in the context.

        `truncated` says whether the question was cut. UserError for an empty text, after `where`.
        """
        dataset = self.windows(questions, contexts, where)
        found = extract_answers(dataset, self.logits(predict_spans, dataset), n_best)
        return [
            {
                "question": question,
                "answers": [answer._asdict() for answer in answers],
                "truncated": cut,
            }
            for question, answers, cut in zip(questions, found, dataset.cut, strict=True)
        ]

    def windows(
        self, questions: list[str], contexts: list[str], where: str = "input"
    ) -> QuestionAnsweringDataset:
        """What the model reads: each question with the parts of its context."""
        return QuestionAnsweringDataset(
            questions, contexts, self.tokenizer, self.settings, where=where
        )


def _load_classifier(folder: Path, max_length: int | None) -> Classifier:
    model = load_fine_tuned(DistilBERTForSequenceClassification, folder)
    tokenizer = get_tokenizer(folder)
    most = model.config.text_length(str(folder), max_length, tokenizer.model_max_length)
    return Classifier(model, tokenizer, str(folder), most)


def _load_answerer(folder: Path, max_length: int | None) -> Answerer:
    model = load_fine_tuned(DistilBERTForQuestionAnswering, folder)
    tokenizer = get_tokenizer(folder)
    usual = WindowSettings()
    longest = min(usual.max_length, tokenizer.model_max_length)
    most = model.config.text_length(str(folder), max_length, longest)
    try:
        settings = usual.with_length(most, tokenizer.num_special_tokens_to_add(pair=True))
    except ValidationError as error:
        raise UserError(first_problem(error, f"max_length {most}")) from None
    return Answerer(model, tokenizer, str(folder), settings)


# By the task of the head; another one adds its function here.
_LOADERS = {"text-classification": _load_classifier, "question-answering": _load_answerer}


def find_task(folder: Path) -> str:
    """The task of a folder's model: a key of `_LOADERS`; UserError if it is none of them."""
    name, task = read_architecture(folder)
    if task not in _LOADERS:
        raise UserError(
            f"{folder}: a {name or 'unknown model'}, which predicts no labels or answers; give a "
            "fine-tuned model"
        )
    return task


def load_predictor(model: str | Path, max_length: int | None = None) -> Predictor:
    """A Classifier or an Answerer: a fine-tuned model of this kit or of transformers.

    `model` is a folder or a name on the hub; `max_length` (tokens of a text, or of a window) is the
    model's own by default. Raises UserError for a model without a head for labels or answers.
    """
    folder = resolve_checkpoint(model)
    return _LOADERS[find_task(folder)](folder, max_length)
