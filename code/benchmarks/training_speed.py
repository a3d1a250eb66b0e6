"""One epoch of SST-2 rows: our fine-tuning against transformers' Trainer, from the same weights.

The yardstick is the Trainer at its best: this machine's best precision, batches grouped by length.
The Trainer as it comes, in fp32 and in random order, stands beside it. All read batches of one
size, the recipe's, and are tested on the dev set afterwards.
"""

import copy
import tempfile
import time
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from distilbert_kit.data.batches import ClassificationDataset, LengthBatchSampler, create_dataloader
from distilbert_kit.data.tables import load_table
from distilbert_kit.data.tasks import get_task
from distilbert_kit.models.checkpoints import resolve_checkpoint
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.settings import TrainSettings
from distilbert_kit.study.evidence.speed import ratio_of_totals
from distilbert_kit.study.inputs import pinned_weights
from distilbert_kit.study.measure import rotated, seconds
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.statistics import wilson_interval
from distilbert_kit.training.classification import CLASSIFICATION, load_task_split, predict_logits
from distilbert_kit.training.loop import train

from .shared import machine_rates, precisions


class _Stopwatch(TrainerCallback):
    """Time from the first training step to the last, without the Trainer's own set-up."""

    def on_train_begin(self, *_, **__) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_, **__) -> None:
        self.seconds = time.perf_counter() - self.started


def train_with_trainer(
    model: nn.Module,
    rows: list[dict],
    collator: DataCollatorWithPadding,
    settings: TrainSettings,
    seed: int,
    **arguments,
) -> float:
    """Fine-tune with transformers' Trainer and dynamic padding; seconds of the steps."""
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=settings.batch_size,
                num_train_epochs=1,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                warmup_steps=settings.warmup_fraction,
                seed=seed,
                use_cpu=True,
                eval_strategy="no",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **arguments,
            ),
            train_dataset=rows,
            data_collator=collator,
            callbacks=[watch],
        ).train()
    return watch.seconds


def train_with_ours(
    model: nn.Module, rows: ClassificationDataset, settings: TrainSettings, seed: int
) -> float:
    """Fine-tune with our loop; seconds of the steps."""
    sampler = LengthBatchSampler(rows.lengths, settings.batch_size, settings.batch_tokens)
    result = train(model, create_dataloader(rows, sampler), CLASSIFICATION, settings, seed=seed)
    return result.seconds


def measure(recipe: Recipe, draft: Draft) -> str:
    """One epoch of SST-2 rows: our loop against transformers' Trainer."""
    settings, task = recipe.training_speed, get_task("sst2")
    weights = pinned_weights(recipe, settings.weights)
    tokenizer = get_tokenizer(weights)
    finetune = recipe.finetune_for(task.name)
    table, used = load_table(task.dataset, task.train_split, ("sentence", "label"))
    dev, dev_table, dev_used = load_task_split(task, "validation", tokenizer, finetune)
    draft.data = [used, dev_used]
    chosen = np.random.default_rng(0).permutation(len(table))[: settings.examples]
    texts, labels = (table.select(chosen)[column][:] for column in ("sentence", "label"))
    draft.extra["tokenisation_seconds"] = seconds(lambda: tokenizer(texts, truncation=True))
    cut = (finetune.max_length, finetune.truncation)
    dataset = ClassificationDataset(texts, labels, tokenizer, *cut)
    rows = [{**item, "attention_mask": [1] * len(item["input_ids"])} for item in dataset]
    torch.manual_seed(0)
    initial = {
        "ours": DistilBERTForSequenceClassification.from_pretrained(weights, num_labels=2),
        "trainer": AutoModelForSequenceClassification.from_pretrained(
            resolve_checkpoint(weights), num_labels=2
        ),
    }
    best = precisions()[-1]
    settings_here = finetune.model_copy(update={"epochs": 1.0, "precision": best})
    collator = DataCollatorWithPadding(tokenizer)
    trainer = partial(train_with_trainer, rows=rows, collator=collator, settings=settings_here)
    candidates = {
        "ours": partial(train_with_ours, rows=dataset, settings=settings_here),
        f"trainer_{best}_grouped": partial(
            trainer, bf16=best == "bf16", train_sampling_strategy="group_by_length"
        ),
        "trainer_fp32": trainer,
    }
    taken, correct = ({name: [] for name in candidates} for _ in range(2))
    references = np.asarray(dev_table["label"][:])
    for turn in range(settings.rounds):
        for name in rotated(candidates, turn):
            model = copy.deepcopy(initial[name.split("_")[0]])
            taken[name].append(candidates[name](model, seed=turn))
            predictions = predict_logits(model.eval(), dev).argmax(1)
            correct[name].append(int((predictions == references).sum()))
    draft.metrics = {
        "examples": len(dataset),
        "real_tokens": int(dataset.lengths.sum()),
        "batch_size": finetune.batch_size,
        "precision": best,
        "dev_accuracy": summarise_accuracy(correct, len(dev)),
    }
    draft.extra |= {
        "seconds": {name: np.round(values, 3).tolist() for name, values in taken.items()}
    } | machine_rates()
    return "ours against " + ", ".join(
        f"{name} {ratio_of_totals(values, taken['ours'])['ratio']:.2f}"
        for name, values in taken.items()
        if name != "ours"
    )


def summarise_accuracy(correct: dict[str, list[int]], dev_rows: int) -> dict[str, dict]:
    """Dev accuracy of each candidate: of each round, their mean, and Wilson's interval.

    Runs share the dev set: the interval is that of one run at the mean accuracy.
    """
    summary = {}
    for name, hits in correct.items():
        interval = wilson_interval(round(sum(hits) / len(hits)), dev_rows)
        summary[name] = {
            "each": [hit / dev_rows for hit in hits],
            "mean": sum(hits) / (dev_rows * len(hits)),
            "low": interval["low"],
            "high": interval["high"],
        }
    return summary
