"""A distillation step, BERT-base to DistilBERT-base: ours against the textbook's.

The textbook step is the one of the original code and of those that follow it: transformers'
models, logits of every position kept in full, rows taken by `masked_select` over a mask as wide as
the vocabulary, torch's loss modules; in fp32, and under bf16 autocast where the CPU has bf16
instructions. Ours is `training.train`
with `training.objectives.triple_objective`, as in distill.py. Both read the same batches under the
same masks and make whole updates: teacher and student forward, triple loss, backward, clipping,
AdamW.
"""

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from tqdm.auto import tqdm
from transformers import BertForMaskedLM, DistilBertForMaskedLM

from distilbert_kit.data.batches import (
    Batch,
    LengthBatchSampler,
    MLMDataset,
    create_dataloader,
    evenly_by_length,
)
from distilbert_kit.errors import UserError
from distilbert_kit.models.initialisation import extract_student
from distilbert_kit.models.model import DistilBERTForMaskedLM
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.models.vocabulary import vocabulary_size
from distilbert_kit.settings import LossWeights, MaskedLMSettings
from distilbert_kit.study.cells import corpus_cell
from distilbert_kit.study.evidence.speed import ratio_of_totals
from distilbert_kit.study.inputs import pinned_weights
from distilbert_kit.study.measure import peak_memory, rotated, training_flops
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.training.distillation import cast_linear_layers, open_corpus
from distilbert_kit.training.loop import train
from distilbert_kit.training.objectives import triple_objective
from distilbert_kit.training.precision import autocast

from .shared import CONFIGS, machine_rates, precisions

WEIGHTS = LossWeights()
SETTINGS = MaskedLMSettings(  # the original code's
    epochs=1,
    learning_rate=5e-4,
    batch_size=16,
    warmup_fraction=0.05,
    betas=(0.9, 0.98),
    eps=1e-6,
    max_grad_norm=5.0,
)
PARTS = ("data", "teacher", "student", "head_and_loss", "backward_and_clipping", "optimiser")
Pair = tuple[nn.Module, nn.Module]
Plan = list[list[int]]


def save_pair(folder: Path) -> None:
    """Teacher and student with random weights, one layer of two, under `folder`."""
    torch.manual_seed(0)
    teacher = DistilBERTForMaskedLM(CONFIGS["bert"])
    student = extract_student(teacher, list(range(0, teacher.config.num_layers, 2)))
    teacher.save_pretrained(folder / "teacher")
    student.save_pretrained(folder / "student")


def load_pair(variant: str, folder: Path) -> Pair:
    """The pair in `folder` as our models, with the teacher of that precision, or transformers'."""
    maker, precision = variant.split("_")
    kinds = (DistilBERTForMaskedLM, DistilBERTForMaskedLM)
    if maker == "textbook":
        kinds = (BertForMaskedLM, DistilBertForMaskedLM)
    teacher, student = (
        kind.from_pretrained(folder / name) for kind, name in zip(kinds, ("teacher", "student"))
    )
    if maker == "ours":
        cast_linear_layers(teacher, precision)
    return teacher.eval(), student


def random_corpus(count: int, length: int) -> MLMDataset:
    """Sequences of random tokens, all of one length."""
    random = np.random.default_rng(0)
    sequences = random.integers(1000, 30000, (count, length))
    return MLMDataset(sequences, [length] * count, get_tokenizer())


def textbook_terms(teacher: nn.Module, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The terms of the triple loss, means, from the full logits [B, L, V] of both models."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool().unsqueeze(-1)
    with torch.no_grad():
        taught = teacher(**inputs, output_hidden_states=True)
    learnt = student(**inputs, output_hidden_states=True)

    def rows(values: Tensor) -> Tensor:
        return values.masked_select(real.expand_as(values)).view(-1, values.shape[-1])

    softened = F.log_softmax(rows(learnt.logits) / WEIGHTS.temperature, dim=-1)
    target = F.softmax(rows(taught.logits) / WEIGHTS.temperature, dim=-1)
    ce = nn.KLDivLoss(reduction="batchmean")(softened, target) * WEIGHTS.temperature**2
    logits = learnt.logits.view(-1, learnt.logits.shape[-1])
    mlm = nn.CrossEntropyLoss(ignore_index=-100)(logits, batch["labels"].view(-1))
    hidden, taught_hidden = rows(learnt.hidden_states[-1]), rows(taught.hidden_states[-1])
    cos = nn.CosineEmbeddingLoss()(hidden, taught_hidden, hidden.new_ones(len(hidden)))
    return {"ce": ce, "mlm": mlm, "cos": cos}


def textbook_loss(teacher: nn.Module, student: nn.Module, batch: Batch) -> Tensor:
    """The triple loss of a masked batch: the weighted sum of its terms."""
    terms = textbook_terms(teacher, student, batch)
    return torch.stack([getattr(WEIGHTS, name) * term for name, term in terms.items()]).sum()


class StepClock:
    """Seconds by part of the updates inside the block, read off wrapped functions.

    Backward and clipping are what lies between the loss and the optimiser's step.
    """

    def __init__(self) -> None:
        self.seconds, self.mark = Counter(), 0.0

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, its time added to `part`."""

        def call(*arguments, **keywords):
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            ended = time.perf_counter()
            self.seconds[part] += ended - started
            if part == "loss":  # the other parts are inside of it, or on another thread
                self.mark = ended
            return result

        return call

    def _pass(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self.mark
        self.mark = now

    @contextmanager
    def watching(self, teacher: nn.Module, student: nn.Module, method: str) -> Iterator[None]:
        """Time `method` of the two encoders and the steps of every optimiser inside the block."""
        hooks = (
            register_optimizer_step_pre_hook(lambda *_: self._pass("backward_and_clipping")),
            register_optimizer_step_post_hook(lambda *_: self._pass("optimiser")),
        )
        for part, encoder in (("teacher", teacher), ("student", student)):
            setattr(encoder, method, self.timed(part, getattr(encoder, method)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for encoder in (teacher, student):
                delattr(encoder, method)

    def parts(self, total: float, updates: int, beside: str = "") -> dict[str, float]:
        """Seconds an update by part; "rest" is what no part holds.

        The part `beside` runs at the same time as the others: it is no share of the total.
        """
        found = dict(self.seconds)
        found["head_and_loss"] = found.pop("loss") - found["teacher"] - found["student"]
        found["rest"] = total - sum(s for part, s in found.items() if part != beside)
        return {part: found[part] / updates for part in (*PARTS, "rest")} | {
            "total": total / updates
        }


def run_ours(pair: Pair, dataset: MLMDataset, plan: Plan, precision: str) -> dict[str, float]:
    """Seconds an update by part, of our loop over the batches of a plan."""
    teacher, student = pair
    clock = StepClock()
    dataset = copy.copy(dataset)
    dataset.collate = clock.timed("data", dataset.collate)
    objective = triple_objective(dataset, WEIGHTS, teacher)
    objective = replace(
        objective,
        prepare=clock.timed("data", objective.prepare),
        loss=clock.timed("loss", objective.loss),
    )
    loader = create_dataloader(dataset, FixedPlan(plan))
    settings = SETTINGS.model_copy(update={"precision": precision})
    with clock.watching(teacher.encoder, student.encoder, "last_hidden_state"):
        result = train(student, loader, objective, settings, seed=0, description="ours")
    return clock.parts(result.seconds, len(plan), beside="data")


class FixedPlan(list):
    """Batches in a given order, in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes."""


def run_textbook(pair: Pair, dataset: MLMDataset, plan: Plan, precision: str) -> dict[str, float]:
    """Seconds an update by part, of the textbook step over the batches of a plan."""
    teacher, student = pair
    clock = StepClock()
    optimizer = torch.optim.AdamW(
        student.parameters(), SETTINGS.learning_rate, SETTINGS.betas, SETTINGS.eps, 0.0
    )
    collate, mask = clock.timed("data", dataset.collate), clock.timed("data", dataset.mask)
    loss_of = clock.timed("loss", textbook_loss)
    student.train()
    with clock.watching(teacher.bert, student.distilbert, "forward"):
        started = time.perf_counter()
        for number, indices in enumerate(tqdm(plan, "textbook", unit="update")):
            batch = collate([dataset[i] for i in indices])
            batch = mask(batch, torch.Generator().manual_seed(number))
            with autocast(torch.device("cpu"), precision):
                loss = loss_of(teacher, student, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), SETTINGS.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        taken = time.perf_counter() - started
    return clock.parts(taken, len(plan))


RUNS = {"textbook": run_textbook, "ours": run_ours}


def variants(*of: str) -> tuple[str, ...]:
    """Maker and precision, by name: every one, or those of some precisions."""
    return tuple(f"{maker}_{precision}" for maker in RUNS for precision in of or precisions())


def run_alone(variant: str, folder: Path, batch_size: int, length: int) -> None:
    """Two updates in a process that does nothing else: the second has the optimiser's state."""
    maker, precision = variant.split("_")
    dataset = random_corpus(batch_size, length)
    RUNS[maker](load_pair(variant, folder), dataset, 2 * [list(range(batch_size))], precision)


def loss_differences(pairs: dict[str, Pair], dataset: MLMDataset, size: int) -> dict:
    """Our loss in each precision minus the textbook's in fp32, without dropout.

    Of each weighted term, without sign, so that none makes up for another; their sum over the
    loss. Beside it the dtype in which the head's linear layer answered: what the precision really
    was.
    """
    batch = dataset.collate([dataset[i] for i in range(size)])
    batch = dataset.mask(batch, torch.Generator().manual_seed(0))
    found: dict = {"head_dtype": {}}
    with torch.no_grad():
        textbook = (model.eval() for model in pairs["textbook_fp32"])
        terms = {name: float(term) for name, term in textbook_terms(*textbook, batch).items()}
        weights = {name: getattr(WEIGHTS, name) for name in terms}
        found["textbook_loss"] = total = sum(weights[name] * terms[name] for name in terms)
        for name, (teacher, student) in pairs.items():
            maker, precision = name.split("_")
            if maker != "ours":
                continue
            objective = triple_objective(dataset, WEIGHTS, teacher)
            counts = {name: float(count) for name, count in objective.counts(batch).items()}
            dtypes = set()
            watching = student.transform.register_forward_hook(
                lambda module, given, output, dtypes=dtypes: dtypes.add(str(output.dtype))
            )
            with watching, autocast(torch.device("cpu"), precision):
                _, sums = objective.loss(student.eval(), batch, counts)
            (dtype,) = dtypes
            found["head_dtype"][precision] = dtype.removeprefix("torch.")
            off = {name: float(sums[name]) / counts[name] - terms[name] for name in terms}
            found[f"ours_{precision}_relative"] = (
                sum(weights[name] * abs(off[name]) for name in terms) / total
            )
    return found


def alternate_updates(
    pairs: dict[str, Pair],
    dataset: MLMDataset,
    plans: dict[str, Plan],
    rounds: int,
) -> dict[str, list[dict[str, float]]]:
    """Seconds by part, for each variant a dictionary a round; `plans` by maker."""
    taken = {variant: [] for variant in pairs}
    for turn in range(rounds):
        for variant in rotated(pairs, turn):
            maker, precision = variant.split("_")
            run = RUNS[maker]
            taken[variant].append(run(pairs[variant], dataset, plans[maker], precision))
    return taken


def summarise_updates(taken: dict[str, list[dict[str, float]]]) -> dict:
    """Seconds an update, of each round, and by part."""
    return {
        "seconds": {name: [round(row["total"], 4) for row in rows] for name, rows in taken.items()},
        "seconds_by_part": {
            name: {part: round(float(np.mean([r[part] for r in rows])), 4) for part in rows[0]}
            for name, rows in taken.items()
        },
    }


def sample_by_length(dataset: MLMDataset, count: int) -> MLMDataset:
    """`count` sequences of the data set, evenly by length."""
    chosen = evenly_by_length(dataset.lengths, count)
    sample = copy.copy(dataset)
    sample.sequences = [dataset[int(i)] for i in chosen]
    sample.lengths = dataset.lengths[chosen].astype(int)
    return sample


def measure(recipe: Recipe, draft: Draft) -> str:
    """The step at one length, its memory, and updates on the recipe's corpus at real lengths."""
    settings = recipe.distillation_speed
    shape = (settings.batch_size, settings.length)
    tokenizer = get_tokenizer(pinned_weights(recipe, recipe.tokenizer_of(recipe.teacher)))
    if (tokens := vocabulary_size(tokenizer)) > (most := CONFIGS["bert"].vocab_size):
        raise UserError(
            f"recipe {recipe.name}: a corpus of {tokens:,} tokens, the models of the benchmark "
            f"distillation_speed have {most:,}; leave out that key"
        )
    corpus = sample_by_length(
        open_corpus(corpus_cell(recipe).made, "train", recipe.corpus, tokenizer),
        settings.sequences,
    )
    draft.metrics = {
        "weights": "random, the same on both sides",
        "batch": {"sequences": shape[0], "length": shape[1]},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pair(folder)
        # First, while this process holds little itself.
        draft.extra["peak_memory_bytes"] = {
            variant: peak_memory(run_alone, variant, folder, *shape) for variant in variants()
        }
        pairs = {variant: load_pair(variant, folder) for variant in variants()}
    dataset = random_corpus(shape[0] * settings.updates, shape[1])
    draft.extra["loss"] = loss_differences(pairs, dataset, shape[0])
    plan = np.arange(len(dataset)).reshape(-1, shape[0]).tolist()
    taken = alternate_updates(pairs, dataset, dict.fromkeys(RUNS, plan), settings.rounds)
    teacher, student = pairs["ours_fp32"]
    draft.metrics["flops_an_update"] = training_flops(
        student.config, [shape[1]] * shape[0], teacher=teacher.config
    )
    draft.extra |= summarise_updates(taken) | machine_rates()
    best = {name: pairs[name] for name in variants(precisions()[-1])}
    draft.metrics["corpus"], draft.extra["corpus"] = measure_corpus(
        best, corpus, settings.batch_tokens, settings.corpus_rounds
    )
    found = [
        f"{where} in {name.split('_')[1]} {ratio_of_totals(part[name], part[ours])['ratio']:.2f}"
        for where, part in (
            ("step", draft.extra["seconds"]),
            ("corpus", draft.extra["corpus"]["seconds"]),
        )
        for name in part
        if (ours := name.replace("textbook", "ours")) != name
    ]
    return f"textbook / ours: {', '.join(found)}"


def measure_corpus(
    pairs: dict[str, Pair], corpus: MLMDataset, batch_tokens: int, rounds: int
) -> tuple[dict, dict]:
    """Length buckets under a token budget against batches of equal size, grouped by length.

    The original code groups by length too, by default, and takes so many sequences a batch. Both
    pass over the same sequences in equally many updates. Few sequences fill the buckets less
    evenly than a whole corpus does, which is to our disadvantage.
    """
    sampler = LengthBatchSampler(corpus.lengths, len(corpus), batch_tokens)
    buckets = list(sampler)
    by_length = np.argsort(corpus.lengths, kind="stable")
    grouped = [part.tolist() for part in np.array_split(by_length, len(buckets))]
    order = np.random.default_rng(0).permutation(len(grouped))
    plans = {"ours": buckets, "textbook": [grouped[i] for i in order]}
    taken = alternate_updates(pairs, corpus, plans, rounds)
    tokens = int(corpus.lengths.sum())
    described = {
        "sequences": len(corpus),
        "updates": len(buckets),
        "real_tokens": tokens,
        "mean_length": tokens / len(corpus),
        "textbook_order": "grouped by length",
        "padded_tokens": {
            maker: int(sum(len(b) * corpus.lengths[b].max() for b in plan))
            for maker, plan in plans.items()
        },
    }
    return described, summarise_updates(taken)
