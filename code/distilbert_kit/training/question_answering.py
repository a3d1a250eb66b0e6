"""Extractive question answering: windows in, answer spans out (SQuAD v1.1, arXiv 1606.05250)."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import datasets
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from ..data.batches import Batch, LengthBatchSampler, TokenDataset, pad_sequences
from ..data.sources import DataUsed
from ..data.tables import load_table
from ..data.tasks import Task
from ..errors import UserError
from ..losses import PADDING_LOGIT, span_distillation, span_loss
from ..metrics import answer_scores
from ..settings import SoftTargets, WindowSettings
from .inference import run_in_buckets
from .objectives import Objective, fine_tuning_objective

EXTRACTION_TOKENS = 4096  # context tokens in a batch of spans: x 30 ends x 4 B stay in the cache


class Answer(NamedTuple):
    """A span of the context: its text, start + end logit, and first and last + 1 character."""

    text: str
    score: float
    start: int
    end: int


class QuestionAnsweringDataset(TokenDataset):
    """Windows of questions and their contexts, `[CLS] question [SEP] part of the context [SEP]`.

    The tokens around them are the tokenizer's: MPNet's are `<s> … </s> </s> … </s>`.

    A long context has several windows, see `WindowSettings`. With `answers`, a character span
    (first, last + 1) for each question, every window has the answer's token positions; a window
    without the whole answer points at [CLS], as in the original code. A question without an answer
    (None, or a span that the tokenizer drops) gets no window and is counted in `dropped`, a cut
    one in `truncated`; `cut` says which.

    Raises UserError for an empty question or context, naming the row, from 1, after `where`, and
    for lists of different lengths.
    """

    teacher_logits: np.ndarray | None = None  # [tokens of all windows, 2], delivered when set

    def __init__(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        settings: WindowSettings,
        answers: Sequence[tuple[int, int] | None] | None = None,
        where: str = "input",
    ):
        if len(questions) != len(contexts) or not len(questions):
            raise UserError(
                f"{len(questions)} questions but {len(contexts)} contexts: give one context for "
                "each"
            )
        self.settings, self.contexts = settings, list(contexts)  # a pandas Series has its own index
        self.pad_token_id = cast(int, tokenizer.pad_token_id)
        self.before, self.between, self.after = special_tokens_of_pairs(tokenizer)
        self.special = len(self.before) + len(self.between) + len(self.after)
        settings.check_room(self.special)
        self.gives_types = "token_type_ids" in tokenizer.model_input_names
        # Some five questions share a paragraph of SQuAD: each text is tokenised once.
        numbers = {text: number for number, text in enumerate(dict.fromkeys(contexts))}
        encoded = _tokenise(list(numbers), tokenizer, return_offsets_mapping=True)
        self.context_ids = encoded["input_ids"]
        self.spans = [np.array(pairs).reshape(-1, 2) for pairs in encoded["offset_mapping"]]
        self.context_of = np.array([numbers[text] for text in contexts])
        whole = _tokenise(list(questions), tokenizer)["input_ids"]
        self.question_ids = [ids[: settings.question_length] for ids in whole]
        self.cut = [len(ids) > settings.question_length for ids in whole]
        self.truncated = sum(self.cut)
        for number, context in enumerate(self.context_of):
            for kind, ids in (("question", whole[number]), ("context", self.context_ids[context])):
                if not ids:
                    row = number + 1
                    raise UserError(f"{where}: row {row} has an empty {kind}; mend or drop it")
        self.has_answers = answers is not None
        targets: list = [(0, 0)] * len(questions)
        if answers is not None:
            targets = [span and self._token_span(n, *span) for n, span in enumerate(answers)]
        self.dropped = targets.count(None)
        windows = [w for n, target in enumerate(targets) if target for w in self._cut(n, *target)]
        if not windows:
            raise UserError(f"{where}: no question has an answer in its context; check the data")
        self.question, self.start, self.stop, *self.positions = np.array(windows).T
        around = len(self.before) + len(self.between)
        first_of_context = around + np.array([len(ids) for ids in self.question_ids])
        self.context_at = first_of_context[self.question]
        self.lengths = self.context_at + self.stop - self.start + len(self.after)
        self.offsets = np.concatenate([[0], self.lengths.cumsum()])

    def _token_span(self, number: int, start: int, end: int) -> tuple[int, int] | None:
        """First and last token of the context that share a character with a span; None: none."""
        starts, ends = self.spans[self.context_of[number]].T
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left")) - 1
        return (first, last) if first <= last else None

    def _cut(self, number: int, first: int, last: int) -> Iterator[tuple[int, ...]]:
        """The windows of a question: its number, context tokens from, to, answer positions."""
        asked = len(self.question_ids[number])
        total = len(self.context_ids[self.context_of[number]])
        room = self.settings.max_length - asked - self.special
        first_of_context = len(self.before) + asked + len(self.between)
        stride = self.settings.stride
        for start in range(0, max(1, total - room + stride), stride):
            stop = min(start + room, total)
            inside, shift = start <= first and last < stop, first_of_context - start
            yield number, start, stop, inside * (first + shift), inside * (last + shift)

    def __getitem__(self, index: int) -> dict:
        question = self.question_ids[self.question[index]]
        context = self.context_ids[self.context_of[self.question[index]]]
        part = context[self.start[index] : self.stop[index]]
        item = {
            "input_ids": [*self.before, *question, *self.between, *part, *self.after],
            "context_at": self.context_at[index],
        }
        if self.has_answers:
            item["positions"] = [places[index] for places in self.positions]
        if self.teacher_logits is not None:
            item["teacher_logits"] = self.teacher_logits[
                self.offsets[index] : self.offsets[index + 1]
            ]
        return item

    @property
    def counts(self) -> dict[str, int]:
        """What a record says of the texts."""
        return {"truncated": self.truncated, "dropped": self.dropped, "windows": len(self)}

    def collate(self, items: list[dict]) -> Batch:
        """Items -> ids, mask, types [B, L]; answer positions [B]; teacher's logits [B, L, 2]."""
        batch = pad_sequences([item["input_ids"] for item in items], self.pad_token_id)
        first = torch.tensor([item["context_at"] for item in items])[:, None]
        of_context = torch.arange(batch["input_ids"].shape[1]) >= first
        if self.gives_types:
            batch["token_type_ids"] = of_context * batch["attention_mask"]
        if "positions" in items[0]:
            positions = torch.tensor(np.array([item["positions"] for item in items]))
            batch["start_positions"], batch["end_positions"] = positions.unbind(1)
        if "teacher_logits" in items[0]:
            logits = [torch.from_numpy(item["teacher_logits"]) for item in items]
            batch["teacher_logits"] = nn.utils.rnn.pad_sequence(logits, batch_first=True)
        return batch


def special_tokens_of_pairs(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids that a tokenizer puts before, between and after the two texts of a pair."""
    encoded = tokenizer("a", "a")
    parts: list[list[int]] = [[], [], []]
    seen = 0
    for token, text in zip(encoded["input_ids"], encoded.sequence_ids(0), strict=True):
        if text is None:
            parts[seen].append(token)
        else:
            seen = text + 1
    return parts


def _tokenise(texts: list[str], tokenizer: PreTrainedTokenizerBase, **arguments) -> BatchEncoding:
    return tokenizer(texts, add_special_tokens=False, verbose=False, **arguments)


def load_question_split(
    task: Task, split: str, tokenizer: PreTrainedTokenizerBase, settings: WindowSettings
) -> tuple[QuestionAnsweringDataset, datasets.Dataset, DataUsed]:
    """One split of a SQuAD-like task in windows, with its table and what was read.

    A training row whose first answer does not stand in the context where it says is dropped and
    counted. Raises UserError as `load_table`, and for an evaluation row without gold answer.
    """
    columns = ("id", *task.text_columns, task.label_column)
    table, used = load_table(task.dataset, split, columns)
    questions, contexts = (
        [text or "" for text in table[column][:]] for column in task.text_columns
    )
    where, golds = f"{task.dataset}/{split}", table[task.label_column][:]
    answers = None
    if split in task.eval_splits:
        if bare := [row for row, gold in enumerate(golds, 1) if not gold["text"]]:
            raise UserError(f"{where}: row {bare[0]} has no gold answer; use a SQuAD v1.1 split")
    else:
        answers = [_character_span(*pair) for pair in zip(contexts, golds, strict=True)]
    dataset = QuestionAnsweringDataset(questions, contexts, tokenizer, settings, answers, where)
    return dataset, table, used


def _character_span(context: str, gold: dict[str, list]) -> tuple[int, int] | None:
    """Where the first gold answer is; None if it is not there."""
    if not gold["text"]:
        return None
    text, start = gold["text"][0], gold["answer_start"][0]
    found = text.strip() and context[start : start + len(text)] == text
    return (start, start + len(text)) if found else None


def _span_loss(output: ModelOutput, batch: Batch) -> Tensor:
    # Without this a window's loss would change with the padding of its batch.
    padding = batch["attention_mask"] == 0
    start, end = (
        logits.float().masked_fill(padding, PADDING_LOGIT)
        for logits in (output["start_logits"], output["end_logits"])
    )
    return span_loss(start, end, batch["start_positions"], batch["end_positions"])


def span_objective(targets: SoftTargets | None = None) -> Objective:
    """Start and end of the answer, under a teacher if `targets`."""
    return fine_tuning_objective(
        _span_loss,
        lambda output, batch, temperature: span_distillation(
            (output.start_logits, output.end_logits),
            batch["teacher_logits"].unbind(-1),
            batch["attention_mask"],
            temperature,
        ),
        targets,
    )


def predict_spans(model: nn.Module, dataset: QuestionAnsweringDataset, **arguments) -> np.ndarray:
    """Start and end logits [tokens of all windows, 2] (float32); arguments of `run_in_buckets`.

    Row `dataset.offsets[w] + i` is token i of window w: padding is not kept.
    """
    logits = np.empty((dataset.offsets[-1], 2), dtype=np.float32)

    def receive(windows: list[int], output: ModelOutput) -> None:
        pairs = torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
        for window, pair in zip(windows, pairs.float().cpu().numpy(), strict=True):
            first, last = dataset.offsets[window : window + 2]
            logits[first:last] = pair[: last - first]

    run_in_buckets(model, dataset, receive, **arguments)
    return logits


def best_spans(
    start: Tensor, end: Tensor, answer_length: int, n_best: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `n_best` highest start + end logits of each row, with first <= last and few tokens.

    Logits [B, L], -inf where no answer may be; an answer has at most `answer_length` tokens.
    Returns sums, first and last positions [B, n]; n is less than asked for if there are fewer
    pairs. Every admissible pair is looked at, where the usual search combines the best 20 starts
    and ends only.
    """
    padded = F.pad(end, (0, answer_length - 1), value=float("-inf"))
    sums = start[:, :, None] + padded.unfold(1, answer_length, 1)  # [B, L, answer_length]
    scores, places = sums.flatten(1).topk(min(n_best, sums[0].numel()))
    first = places // answer_length
    return scores, first, first + places % answer_length


def _candidates(
    dataset: QuestionAnsweringDataset, logits: np.ndarray, n_best: int
) -> tuple[np.ndarray, ...]:
    """The best spans of every window: scores, question, first and last token of the context."""
    found = []
    sizes = dataset.stop - dataset.start
    for windows in LengthBatchSampler(sizes, len(sizes), EXTRACTION_TOKENS, shuffle=False):
        columns = np.arange(sizes[windows].max())
        places = (dataset.offsets[windows] + dataset.context_at[windows])[:, None] + columns
        outside = columns >= sizes[windows][:, None]
        context = torch.from_numpy(logits[np.where(outside, 0, places)])
        context[torch.from_numpy(outside)] = float("-inf")
        start, end = context.unbind(-1)
        spans = best_spans(start, end, dataset.settings.answer_length, n_best)
        scores, first, last = (values.numpy() for values in spans)
        shift = dataset.start[windows][:, None]
        question = np.broadcast_to(dataset.question[windows][:, None], scores.shape)
        rows = np.stack([scores, question, first + shift, last + shift])
        found.append(rows[:, np.isfinite(scores)])
    scores, *numbers = np.concatenate(found, axis=1)
    return scores, *(values.astype(int) for values in numbers)


def extract_answers(
    dataset: QuestionAnsweringDataset, logits: np.ndarray, n_best: int = 1
) -> list[list[Answer]]:
    """Up to `n_best` different answers of each question over all its windows, best first.

    `logits` as from `predict_spans`. Sums of logits are compared between windows as they are, as
    in the original code. Answers are cut from the context by character.
    """
    scores, question, first, last = _candidates(dataset, logits, n_best)
    answers: list[dict[tuple[int, int], Answer]] = [{} for _ in dataset.question_ids]
    for row in np.argsort(-scores, kind="stable"):
        number = int(question[row])
        kept, context = answers[number], dataset.contexts[number]
        if len(kept) < n_best:
            spans = dataset.spans[dataset.context_of[number]]
            start, end = int(spans[first[row], 0]), int(spans[last[row], 1])
            # The tokenizer drops accents: a combining mark belongs to the letter before it.
            while end < len(context) and unicodedata.category(context[end]).startswith("M"):
                end += 1
            answer = Answer(context[start:end], float(scores[row]), start, end)
            kept.setdefault((start, end), answer)
    return [list(kept.values()) for kept in answers]


def answer_questions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    contexts: Sequence[str],
    settings: WindowSettings | None = None,
    n_best: int = 20,
    **arguments,
) -> list[list[Answer]]:
    """Answers to questions, each from its context; arguments of `run_in_buckets`.

    Raises UserError for an empty question or context and for lists of different lengths.
    """
    settings = settings or WindowSettings()
    dataset = QuestionAnsweringDataset(questions, contexts, tokenizer, settings)
    return extract_answers(dataset, predict_spans(model, dataset, **arguments), n_best)


def score_answers(
    logits: np.ndarray, dataset: QuestionAnsweringDataset, table: datasets.Dataset, task: Task
) -> tuple[dict[str, float], pd.DataFrame]:
    """Mean exact match and F1, and a row for each question: row, id, prediction and both scores."""
    predictions = [best[0].text for best in extract_answers(dataset, logits)]
    golds = [gold["text"] for gold in table[task.label_column][:]]
    scores = [answer_scores(*pair) for pair in zip(predictions, golds, strict=True)]
    frame = pd.DataFrame(scores, columns=["exact_match", "f1"])
    frame.insert(0, "row", np.arange(len(frame)))
    frame.insert(1, "id", table["id"][:])
    frame.insert(2, "prediction", predictions)
    return {name: float(np.mean(frame[name])) for name in task.metrics}, frame
