"""From texts to batches: tokenisation, length buckets, loaders."""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..models.vocabulary import vocabulary_size
from .masking import mask_tokens, masking_probabilities

Batch = dict[str, Tensor]
TokenIds = Sequence[int] | np.ndarray
MAX_LENGTH = 512
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HEAD_PIECES = 128  # what "head_tail" keeps from the beginning, arXiv 1905.05583, section 5.3.1


class TokenDataset(Dataset[Any], ABC):
    """Examples of known lengths, which `collate` makes a batch of."""

    lengths: np.ndarray  # [N], in tokens

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def collate(self, items: list[Any]) -> Batch:
        """A padded batch of items of the data set."""


class ClassificationDataset(TokenDataset):
    """Tokenised sentences or sentence pairs with labels.

    `texts` are strings or pairs of strings; texts longer than `max_length` word pieces are cut,
    `cut` says which. `truncation`: "head" keeps the beginning, "head_tail" the first
    128 word pieces and the last of the rest (arXiv 1905.05583, section 5.3.1; single texts only).
    Token types are kept for the models that read them, if the tokenizer gives any.
    """

    teacher_logits: np.ndarray | None = None  # [N, C], delivered with each item when set

    def __init__(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        labels: Sequence[int] | Sequence[float] | None,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = MAX_LENGTH,
        truncation: str = "head",
    ):
        if isinstance(texts, str) or not len(texts):
            raise UserError("no texts: give one or more, in a list")
        if labels is not None and len(labels) != len(texts):
            raise UserError(f"{len(texts)} texts but {len(labels)} labels: give one for each")
        self.pad_token_id = cast(int, tokenizer.pad_token_id)
        first = [text if isinstance(text, str) else text[0] for text in texts]
        second = [text[1] for text in texts if not isinstance(text, str)] or None
        if truncation == "head_tail":
            if second:
                raise UserError("truncation head_tail is for single texts; use head for pairs")
            self._encode_head_tail(first, tokenizer, max_length)
        else:
            encoded = tokenizer(
                first, second, truncation=True, max_length=max_length, padding=False
            )
            self.input_ids = encoded["input_ids"]
            self.token_type_ids = encoded.get("token_type_ids")
            # The fast tokenizer returns what it cut off as overflowing pieces.
            self.cut = [bool(encoded[row].overflowing) for row in range(len(texts))]
        self.lengths = np.fromiter(map(len, self.input_ids), dtype=np.int64)
        self.labels = None if labels is None else _as_numbers(labels)

    def _encode_head_tail(
        self,
        texts: list[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        head = 1 + HEAD_PIECES  # after [CLS]; [SEP] is the last of the tail
        tail = max_length - head
        if tail < 2:
            raise UserError(
                f"truncation head_tail needs a max_length of at least {head + 2}, not {max_length}"
            )
        encoded = tokenizer(texts, padding=False, verbose=False)["input_ids"]
        self.cut = [len(ids) > max_length for ids in encoded]
        self.input_ids = [
            ids[:head] + ids[-tail:] if cut else ids for ids, cut in zip(encoded, self.cut)
        ]
        typed = "token_type_ids" in tokenizer.model_input_names
        self.token_type_ids = [[0] * len(ids) for ids in self.input_ids] if typed else None

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"input_ids": self.input_ids[index]}
        if self.token_type_ids is not None:
            item["token_type_ids"] = self.token_type_ids[index]
        if self.labels is not None:
            item["labels"] = self.labels[index]
        if self.teacher_logits is not None:
            item["teacher_logits"] = self.teacher_logits[index]
        return item

    def select(self, indices: Sequence[int]) -> "ClassificationDataset":
        """The examples at the indices, in their order."""
        chosen = copy.copy(self)
        for name in ("input_ids", "token_type_ids", "labels", "teacher_logits", "cut"):
            if (values := getattr(self, name)) is not None:
                setattr(chosen, name, [values[index] for index in indices])
        chosen.lengths = self.lengths[list(indices)]
        return chosen

    @property
    def truncated(self) -> int:
        """How many of the texts were cut."""
        return sum(self.cut)

    @property
    def counts(self) -> dict[str, int]:
        """What a record says of the texts."""
        return {"truncated": self.truncated}

    def collate(self, items: list[dict[str, Any]]) -> Batch:
        """Items -> tensors [B, L], padded to the longest; labels [B] (int64, or float32)."""
        batch = pad_sequences([item["input_ids"] for item in items], self.pad_token_id)
        if "token_type_ids" in items[0]:
            types = pad_sequences([item["token_type_ids"] for item in items], 0)
            batch["token_type_ids"] = types["input_ids"]
        if "labels" in items[0]:
            labels = torch.tensor([item["labels"] for item in items])
            batch["labels"] = labels.float() if labels.is_floating_point() else labels.long()
        if "teacher_logits" in items[0]:
            logits = np.stack([item["teacher_logits"] for item in items])
            batch["teacher_logits"] = torch.from_numpy(logits)
        return batch


def _as_numbers(labels: Any) -> list:
    """Labels in order, whatever the index of a pandas Series; UserError unless all are numbers."""
    numbers = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    for label in numbers:
        if not isinstance(label, int | float | np.number) or not np.isfinite(label):
            raise UserError(
                f"label {label!r}: give the number of the class, from 0, or of a regression the "
                "value"
            )
    return numbers


class MLMDataset(TokenDataset):
    """Token sequences for masked language modelling; every batch gets new masks.

    `sequences` is any indexable of token-id arrays with special tokens in place, for example
    the memory-mapped shards of corpus/shards.py. `token_counts` [V] are how often each token of the
    tokenizer occurs, by default all alike; UserError when they are those of another vocabulary.
    """

    def __init__(
        self,
        sequences: Sequence[TokenIds],
        lengths: ArrayLike,
        tokenizer: PreTrainedTokenizerBase,
        token_counts: Tensor | None = None,
        mask_probability: float = 0.15,
        smoothing: float = 0.7,
    ):
        self.sequences, self.lengths = sequences, np.asarray(lengths)
        self.mask_probability = mask_probability
        if tokenizer.mask_token_id is None:
            raise UserError("the tokenizer has no mask_token: give one made for masked LMs")
        self.mask_token_id = cast(int, tokenizer.mask_token_id)
        self.pad_token_id = cast(int, tokenizer.pad_token_id)
        size = vocabulary_size(tokenizer)
        counts = torch.ones(size) if token_counts is None else token_counts
        if len(counts) != size:
            raise UserError(
                f"{len(counts):,} token counts for a vocabulary of {size:,}: count the tokens with "
                "the model's own tokenizer"
            )
        self.token_weights = masking_probabilities(counts, smoothing, tokenizer.all_special_ids)

    def __getitem__(self, index: int) -> TokenIds:
        return self.sequences[index]

    def mask(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Draw masks for a padded batch: replaces input_ids [B, L] and adds labels [B, L]."""
        input_ids, labels = mask_tokens(
            batch["input_ids"],
            batch["attention_mask"],
            self.token_weights,
            mask_probability=self.mask_probability,
            mask_token_id=self.mask_token_id,
            generator=generator,
        )
        return batch | {"input_ids": input_ids, "labels": labels}

    def collate(self, items: list[TokenIds]) -> Batch:
        """Padded ids and attention mask [B, L], not masked yet: the loop draws seeded masks."""
        return pad_sequences(items, self.pad_token_id)


def pad_sequences(sequences: Sequence[TokenIds], pad_token_id: int) -> Batch:
    """Right-pad id sequences: input_ids and attention_mask, both int64 [B, L]."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def model_inputs(batch: Batch) -> Batch:
    """What a model's forward reads of a batch: no labels, no teacher's logits."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def evenly_by_length(lengths: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` of the examples, or of all, in even steps from the shortest on."""
    by_length = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(lengths) - 1, min(count, len(lengths)))
    return by_length[places.round().astype(int)]


class BatchSampler(Protocol):
    """What training asks of a loader's `batch_sampler`: the same batches for the same epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""

    def __iter__(self) -> Iterator[list[int]]: ...

    def __len__(self) -> int: ...


class LengthBatchSampler:
    """Batches of similar length: at most `batch_size` examples and `batch_tokens` padded tokens.

    With `shuffle`, examples are shuffled, sorted by length within pools of `pool` batches, cut
    into batches, and the batches are shuffled; (seed, epoch) alone decides the order. Without
    `shuffle`, batches go from long to short, and their lists of indices say which example is
    where.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        batch_size: int,
        batch_tokens: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        pool: int = 100,
    ):
        self.lengths = np.asarray(lengths)
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.shuffle, self.seed, self.pool, self.epoch = shuffle, seed, pool, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def _cut(self, indices: np.ndarray) -> Iterator[list[int]]:
        """Cut indices, sorted from long to short, into batches."""
        start = 0
        while start < len(indices):
            longest = int(self.lengths[indices[start]])
            most = self.batch_tokens // longest if self.batch_tokens else self.batch_size
            size = max(1, min(self.batch_size, most))
            yield indices[start : start + size].tolist()
            start += size

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffle:
            yield from self._cut(np.argsort(-self.lengths, kind="stable"))
            return
        random = np.random.default_rng([self.seed, self.epoch])
        shuffled = random.permutation(len(self.lengths))
        pools = range(0, len(shuffled), self.pool * self.batch_size)
        batches = []
        for start in pools:
            part = shuffled[start : start + self.pool * self.batch_size]
            batches += self._cut(part[np.argsort(-self.lengths[part], kind="stable")])
        for index in random.permutation(len(batches)):
            yield batches[index]

    def __len__(self) -> int:
        return sum(1 for _ in self)


def create_dataloader(dataset: TokenDataset, sampler: Iterable[list[int]]) -> DataLoader:
    """Loader over a data set in the sampler's batches."""
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)


def create_classification_dataloader(
    texts: Sequence[str] | Sequence[tuple[str, str]],
    labels: Sequence[int] | None,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 16,
    *,
    max_length: int = MAX_LENGTH,
    batch_tokens: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader:
    """Texts (or pairs) and labels -> length-bucketed batches.

    `seed` decides their order when they are read; `train` orders them by its own seed.
    """
    dataset = ClassificationDataset(texts, labels, tokenizer, max_length)
    sampler = LengthBatchSampler(dataset.lengths, batch_size, batch_tokens, shuffle, seed)
    return create_dataloader(dataset, sampler)


def create_mlm_dataloader(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 16,
    mask_probability: float = 0.15,
    *,
    max_length: int = MAX_LENGTH,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader:
    """Texts -> masked batches (input_ids, attention_mask, labels), masks smoothed by counts.

    `seed` decides the order of the batches and their masks, which go on from batch to batch: a
    second pass masks anew. `train` orders and masks them by its own seed.
    """
    sequences = ClassificationDataset(texts, None, tokenizer, max_length).input_ids
    counts = Counter(token for sequence in sequences for token in sequence)
    token_counts = torch.tensor([float(counts[i]) for i in range(vocabulary_size(tokenizer))])
    dataset = MLMDataset(
        sequences, list(map(len, sequences)), tokenizer, token_counts, mask_probability
    )
    sampler = LengthBatchSampler(dataset.lengths, batch_size, shuffle=shuffle, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=lambda items: dataset.mask(dataset.collate(items), generator),
    )
