"""THE training loop: one for masked LM, distillation, classification and question answering.

A loss comes as sums and is divided by counts known before the forward pass, taken over all
micro-batches of an update, which the processes share. So accumulation and data parallelism change
nothing but rounding, where a mean of micro-batch means would weigh tokens of short batches more.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.batches import Batch, BatchSampler, LengthBatchSampler, TokenDataset
from ..errors import NonFiniteError, UserError
from ..machine import keeping_freed_memory
from ..settings import TrainSettings
from .checkpointing import TrainingResult, TrainingState, append_history, cut_history
from .objectives import Objective, Sums
from .precision import usable_precision

Item = TypeVar("Item")
LOG_EVERY = 10  # updates between two points of the history
CHECKPOINT_SECONDS = 600.0  # between two states where no number of updates is asked for


class _Window(NamedTuple):
    """What this process computes of one update; `share` is 0 where it only keeps step."""

    batches: list[Batch]
    dropout_seeds: list[int]
    share: float


class _Step(nn.Module):
    """The objective as a module: data-parallel wrappers only synchronise what runs in forward."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, denominators: dict[str, float]) -> tuple[Tensor, Sums]:
        return self.objective.loss(self.model, batch, denominators)


def create_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and LayerNorms, told by their single dimension.

    The original code named the norms it spared and missed the student's.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def learning_rate_factor(update: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup` updates, then linear decay to 0 at `total`."""
    if update < warmup:
        return (update + 1) / warmup
    return max(0.0, (total - update) / max(1, total - warmup))


def _windows(
    loader: DataLoader,
    objective: Objective,
    settings: TrainSettings,
    accelerator: Accelerator,
    seed: int,
    start: int,
    total: int,
) -> Iterator[_Window]:
    """The micro-batches of each update for this process, prepared by the objective.

    Batch i of an update goes to process i modulo the number of processes. A process for which the
    last update of an epoch leaves none computes the first one again, with share 0 instead of 1.
    """

    def prepared(number: int, indices: list[int]) -> tuple[Batch, int]:
        generator = _generator(seed, number)
        batch = dataset.collate([dataset[i] for i in indices])
        batch = objective.prepare(batch, generator)
        return batch, int(torch.randint(2**63 - 1, (), generator=generator))

    sampler = cast(BatchSampler, loader.batch_sampler)
    world = int(accelerator.num_processes)  # accelerate does not say its type
    dataset = cast(TokenDataset, loader.dataset)
    per_update = settings.accumulation
    update = 0
    for epoch in range(math.ceil(settings.epochs)):
        sampler.set_epoch(epoch)
        plan = list(sampler)
        for first in range(0, len(plan), per_update):
            if update == total:
                return
            if update >= start:
                end = min(first + per_update, len(plan))
                mine = range(first + accelerator.process_index, end, world)
                passed = update * per_update - first  # plans of epochs may differ in length
                window = [prepared(passed + index, plan[index]) for index in mine or [first]]
                batches, seeds = zip(*window, strict=True)
                yield _Window(list(batches), list(seeds), float(len(mine) > 0))
            update += 1


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made while the one before it is used: a GPU need not wait for it."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def _order_batches(loader: DataLoader, settings: TrainSettings, seed: int) -> None:
    """Draw a LengthBatchSampler's order from `seed`; UserError unless batches are as asked for."""
    sampler = loader.batch_sampler
    if not isinstance(sampler, LengthBatchSampler):  # its order is its own
        return
    for name in ("batch_size", "batch_tokens"):
        found, asked = getattr(sampler, name), getattr(settings, name)
        if found != asked:
            raise UserError(
                f"{name}: {found} in the loader, {asked} in the settings; make them equal"
            )
    sampler.seed = seed


def updates_in_run(loader: DataLoader, settings: TrainSettings) -> int:
    """Number of updates in `settings.epochs` epochs; the last window of an epoch may be short."""
    # Exact: 0.28 of 25 updates are 7, in floating point 8.
    full, part = divmod(Fraction(settings.epochs).limit_denominator(10**6), 1)
    sampler, counts = cast(BatchSampler, loader.batch_sampler), []
    for epoch in range(math.ceil(settings.epochs)):
        sampler.set_epoch(epoch)
        counts.append(math.ceil(len(sampler) / settings.accumulation))
    return sum(counts[: int(full)]) + (math.ceil(part * counts[-1]) if part else 0)


def _check_shares(accumulation: int, processes: int) -> None:
    """Refuse more processes than micro-batches: the training is the recipe's on any number."""
    if processes > accumulation:
        raise UserError(
            f"accumulation {accumulation}: too few micro-batches in an update for {processes} "
            f"processes; set it to a multiple of {processes}, or start at most {accumulation}"
        )


def create_accelerator(precision: str) -> Accelerator:
    """The engine underneath: device, autocast, gradient scaling, data parallelism."""
    precision = usable_precision(precision)
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision fp16 needs a GPU; use bf16 or fp32 on this machine")
    AcceleratorState._reset_state()  # one process may train at several precisions, one by one
    # Without `cpu`, torchrun's processes would not know of each other on a machine without CUDA.
    on_cpu = not torch.cuda.is_available()
    return Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)


def training_device(precision: str) -> torch.device:
    """Where a model is trained in this precision."""
    return create_accelerator(precision).device


@keeping_freed_memory()
def train(
    model: nn.Module,
    loader: DataLoader,
    objective: Objective,
    settings: TrainSettings,
    *,
    seed: int,
    description: str = "training",
    checkpoints: Path | None = None,
    checkpoint_every: int | None = 200,
    identity: str | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    validate_every: int | None = None,
) -> TrainingResult:
    """Train `model` in place and return what was done.

    `loader` has a TokenDataset, whose `collate` makes the batches, and a BatchSampler; masks are
    drawn by the objective. Everything random follows from `seed`, the order of a LengthBatchSampler
    too, whatever its own; another sampler keeps its order. With a folder `checkpoints`, state is
    kept there every `checkpoint_every` updates (None: every `CHECKPOINT_SECONDS`) and a run that
    was cut off goes on from the last one, to the same weights bit for bit (on a CPU, the same
    machine with as many threads: another sums products in another order). It then needs an
    `identity`: a name or hash of all that decides the result and that the loop cannot see, the
    starting weights, the data, the loss and its teacher. The rows of the history are there too as
    they come, with the tokens until then: `history.jsonl`. Every `validate_every` updates, the
    losses that `validate()` returns stand in a row; it is called on all processes, and may leave
    the model in evaluation mode. Raises NonFiniteError naming the update, and UserError for batches
    of other sizes than the settings ask for, for more processes than an update has micro-batches,
    and for a checkpoint of another identity, of other settings or precision.
    """
    if checkpoints is not None and identity is None:
        raise ValueError("checkpoints needs identity: name the start, the data and the loss")
    _order_batches(loader, settings, seed)
    accelerator = create_accelerator(settings.precision)
    _check_shares(settings.accumulation, accelerator.num_processes)
    total = updates_in_run(loader, settings)
    warmup = math.ceil(settings.warmup_fraction * total)
    step = accelerator.prepare(_Step(model, objective).train())
    adamw = create_optimizer(model, settings)
    optimizer = accelerator.prepare(adamw)
    scheduler = LambdaLR(optimizer, lambda update: learning_rate_factor(update, total, warmup))
    result = TrainingResult(precision=usable_precision(settings.precision))
    run = {
        "identity": identity,
        "settings": settings.model_dump(mode="json"),
        "precision in use": result.precision,
        "seed": seed,
        "updates": total,
    }
    state = TrainingState(run, step, adamw, scheduler, result, accelerator)
    if checkpoints is not None:
        state.resume(checkpoints)
        if accelerator.is_main_process:
            cut_history(checkpoints, len(result.history))
    bar = tqdm(
        total=total,
        initial=result.updates,
        desc=description,
        unit="update",
        disable=not accelerator.is_main_process,
        mininterval=1,
    )
    saved = time.perf_counter()
    started = saved - result.seconds
    windows = _windows(loader, objective, settings, accelerator, seed, result.updates, total)
    for window in _one_ahead(windows):
        terms = _update(step, window, objective, optimizer, accelerator, settings, result)
        scheduler.step()
        result.updates += 1
        for name, value in terms.items():
            result.recent.setdefault(name, []).append(value)
        found = {}
        if validate and validate_every and result.updates % validate_every == 0:
            paused = time.perf_counter()
            found = validate()
            step.train()
            started += time.perf_counter() - paused  # it is no part of the training's speed
        if found or result.updates % LOG_EVERY == 0 or result.updates == total:
            row = _log(result, scheduler, found, bar, started)
            if checkpoints is not None and accelerator.is_main_process:
                append_history(checkpoints, row | {"tokens": result.tokens})
        bar.update()
        if checkpoints is None:
            continue
        if checkpoint_every is None:
            if time.perf_counter() - saved >= CHECKPOINT_SECONDS:
                accelerator.set_trigger()
            due = accelerator.check_trigger()  # of any process: all save together
        else:
            due = result.updates % checkpoint_every == 0
        if due:
            saved = time.perf_counter()
            result.seconds = saved - started
            state.save(checkpoints)
    bar.close()
    result.seconds = time.perf_counter() - started
    model.eval()
    return result


def _generator(seed: int, number: int) -> torch.Generator:
    """The random numbers of a micro-batch: its masks and the seed of its dropout."""
    # On a CPU only the low 32 bits of a seed count; this odd number keeps the runs' seeds apart.
    return torch.Generator().manual_seed((number + seed * 0x9E3779B1) % 2**32)


def _update(
    step: nn.Module,
    window: _Window,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    settings: TrainSettings,
    result: TrainingResult,
) -> dict[str, float]:
    """One optimiser step over the micro-batches of a window; returns the mean of each term."""
    device, (batches, seeds, share) = accelerator.device, window
    counted = [objective.counts(batch) for batch in batches]
    totals = {name: share * sum(c[name] for c in counted) for name in counted[0]}
    totals |= {
        "examples": share * torch.tensor(sum(len(batch["input_ids"]) for batch in batches)),
        "tokens": share * sum(batch["attention_mask"].sum() for batch in batches),
    }
    # One exchange for all counts; double precision counts tokens exactly.
    stacked = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in totals.values()])
    stacked = cast(Tensor, accelerator.reduce(stacked.to(device)))
    counts = dict(zip(totals, stacked.tolist(), strict=True))
    result.examples += int(counts.pop("examples"))
    result.tokens += int(counts.pop("tokens"))
    # Data-parallel wrappers average gradients over processes: undo it, the counts are global.
    denominators = {
        name: max(count, 1.0) / accelerator.num_processes for name, count in counts.items()
    }
    sums = dict.fromkeys(counts, torch.zeros((), device=device))
    for index, (batch, dropout_seed) in enumerate(zip(batches, seeds, strict=True)):
        last = index == len(batches) - 1
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        torch.manual_seed(dropout_seed)
        # Processes exchange gradients with the last micro-batch of an update only.
        with nullcontext() if last else accelerator.no_sync(step):
            loss, parts = step(batch, denominators)
            accelerator.backward(loss * share)
        for name, value in parts.items():
            sums[name] = sums[name] + share * value.float()
    reduced = cast(Tensor, accelerator.reduce(torch.stack(list(sums.values())))).tolist()
    means = {name: v / max(counts[name], 1.0) for name, v in zip(sums, reduced, strict=True)}
    if not all(map(math.isfinite, means.values())):
        shown = ", ".join(f"{name} {value:g}" for name, value in means.items())
        raise NonFiniteError(
            f"the loss is not finite at update {result.updates + 1} ({shown}); "
            "lower the learning rate or use precision fp32"
        )
    norm = cast(Tensor, accelerator.clip_grad_norm_(step.parameters(), settings.max_grad_norm))
    if accelerator.scaler is None and not norm.isfinite():  # a scaler skips such an update
        raise NonFiniteError(
            f"the gradient is not finite at update {result.updates + 1} (its norm is {norm:g}); "
            "lower the learning rate or use precision fp32"
        )
    optimizer.step()
    optimizer.zero_grad()
    return means


def _log(
    result: TrainingResult,
    scheduler: LambdaLR,
    validation: dict[str, float],
    bar: tqdm,
    started: float,
) -> dict[str, float]:
    """Add a row to the history, show it on the bar, and return it."""
    row = {"update": result.updates, "learning_rate": scheduler.get_last_lr()[0]}
    row |= {name: round(sum(v) / len(v), 6) for name, v in result.recent.items()}
    row |= {f"validation_{name}": round(value, 6) for name, value in validation.items()}
    result.recent = {}
    result.history.append(row)
    shown = {name: f"{value:.3f}" for name, value in row.items() if name not in list(row)[:2]}
    seconds = time.perf_counter() - started
    bar.set_postfix(shown | {"tok/s": f"{result.tokens / max(seconds, 1e-9):.0f}"})
    return row
