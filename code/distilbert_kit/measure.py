"""Measuring: alternated timing, the machine's matrix-product rate, FLOP counts, model sizes."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from .config import ModelConfig

Item = TypeVar("Item")
# Words in parameter names, ours and transformers', that tell the part of the model.
_PARTS = {"embeddings": {"embeddings"}, "blocks": {"blocks", "layer"}, "pooler": {"pooler"}}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def rotated(names: Iterable[str], turn: int) -> list[str]:
    """The names in order, starting at the `turn`-th, so that each takes its turn at being first."""
    names = list(names)
    return names[turn % len(names) :] + names[: turn % len(names)]


def alternate_over(
    functions: dict[str, Callable[[Item], object]], items: Sequence[Item], passes: int = 1
) -> dict[str, np.ndarray]:
    """Time every function on every item: for each name seconds [passes, items].

    For each item all functions are called, each time starting with another one, so that a busy
    spell of the machine, or a warm cache, falls on all of them alike: ratios hold where absolute
    times do not.
    """
    taken = {name: np.empty((passes, len(items))) for name in functions}
    for number in range(passes):
        for index, item in enumerate(items):
            for name in rotated(functions, number + index):
                taken[name][number, index] = seconds(partial(functions[name], item))
    return taken


def alternate(
    functions: dict[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, np.ndarray]:
    """Time the functions in turn: for each name seconds [repeats], after `warmup` unused rounds."""
    calls = {name: lambda _, function=function: function() for name, function in functions.items()}
    taken = alternate_over(calls, range(warmup + repeats))
    return {name: values[0, warmup:] for name, values in taken.items()}


def matrix_product_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 10) -> float:
    """GFLOP/s of this machine, with the threads now set: the best of square products [size, size].

    The best, not the median: it stands for what the machine can do when nothing else runs.
    """
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    with torch.inference_mode():
        taken = alternate({"product": lambda: left @ right}, repeats, warmup=2)
    return 2 * size**3 / taken["product"].min() / 1e9


def forward_flops(
    config: ModelConfig,
    lengths: Iterable[int],
    *,
    head: str | None = None,
    num_labels: int = 2,
    trimmed: bool = False,
) -> int:
    """Matrix-product FLOPs (2 per multiply-add) of a forward pass over sequences, one by one.

    For length L, width H and inner width F a block takes 2·L·(4·H² + 2·H·F) for its linear layers
    and 4·L²·H for attention. `head` is None (the bare encoder, with BERT's pooler),
    "classification" or "mlm" (transform and vocabulary projection of every token). `trimmed`
    counts our classifier, whose last block computes only the first position after its joint
    query-key-value product; transformers' computes all.
    """
    length = np.asarray(list(lengths), dtype=np.int64)
    hidden, inner = config.hidden_size, config.intermediate_size

    def block(positions: np.ndarray) -> np.ndarray:
        joint = 2 * length * 3 * hidden**2
        per_position = 2 * hidden**2 + 4 * hidden * inner
        return joint + positions * (per_position + 4 * length * hidden)

    last = np.ones_like(length) if trimmed else length
    total = (config.num_layers - 1) * block(length) + block(last)
    if head == "mlm":
        total = total + 2 * length * hidden * (hidden + config.vocab_size)
    elif config.model_type == "bert" or head == "classification":
        total = total + 2 * hidden**2  # the pooler, or DistilBERT's pre-classifier
    if head == "classification":
        total = total + 2 * hidden * num_labels
    return int(total.sum())


def model_size(model: nn.Module) -> dict[str, int]:
    """Parameters in all, in the embeddings, in a block and in the pooler, and bytes on disk.

    Takes our models and transformers' BERT and DistilBERT encoders. Bytes are those of the
    safetensors file with all weights in fp32, and in fp16.
    """
    count = {"total": 0, "embeddings": 0, "blocks": 0, "pooler": 0}
    for name, parameter in model.named_parameters():
        count["total"] += parameter.numel()
        for part, words in _PARTS.items():
            if any(word in name.split(".") for word in words):
                count[part] += parameter.numel()
    depth = next(
        len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in _PARTS["blocks"]
    )
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {
        "parameters": count["total"],
        "parameters_embeddings": count["embeddings"],
        "parameters_per_layer": count["blocks"] // depth,
        "parameters_pooler": count["pooler"],
        "parameters_without_pooler": count["total"] - count["pooler"],
        "layers": depth,
        "bytes_fp32": len(save({k: v.float() for k, v in state.items()})),
        "bytes_fp16": len(save({k: v.half() for k, v in state.items()})),
    }
