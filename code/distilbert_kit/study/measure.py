"""Measuring: alternated timing, the machine's matrix-product rate, FLOP counts, model sizes."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import psutil
import torch
from safetensors.torch import save
from torch import nn

from ..machine import peak_memory_bytes
from ..models.config import ModelConfig

Item = TypeVar("Item")
SLOWEST_PRODUCT = 2.0  # seconds

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


LARGEST = 8192  # side of the matrices below; a walk with tiny models lowers it


def matrix_product_rate(
    dtype: torch.dtype, size: int = 2048, device: torch.device | str = "cpu"
) -> float:
    """GFLOP/s of a device, with the threads now set: the best of square products [size, size].

    The best, not the median: it stands for what the machine can do when nothing else runs. Where a
    product would take over two seconds (emulated bf16: half a minute) a smaller one stands for it.
    """

    def product(side: int) -> Callable[[], object]:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return lambda: (left @ right)[0, 0].item()  # reading one value waits for the device

    size = min(size, LARGEST)
    with torch.inference_mode():
        trial = min(256, size)
        once = alternate({"work": product(trial)}, 3)["work"].min()
        while size > trial and once * (size / trial) ** 3 > SLOWEST_PRODUCT:
            size //= 2
        taken = alternate({"work": product(size)}, 10, warmup=2)
    return 2 * size**3 / taken["work"].min() / 1e9


def int8_product_rate() -> float:
    """The same of ONNX Runtime's product of int8 matrices into int32, in 10**9 operations/s."""
    import onnxruntime
    from onnx import TensorProto, ValueInfoProto, helper

    size = min(2048, LARGEST)

    def matrix(name: str, kind: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [size, size])

    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    inputs = [matrix("a", TensorProto.UINT8), matrix("b", TensorProto.INT8)]
    graph = helper.make_graph([node], "product", inputs, [matrix("c", TensorProto.INT32)])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {"a": np.ones((size, size), np.uint8), "b": np.ones((size, size), np.int8)}
    taken = alternate({"work": lambda: session.run(None, given)}, 10, warmup=2)
    return 2 * size**3 / taken["work"].min() / 1e9


def peak_memory(function: Callable[..., object], *arguments) -> int:
    """The peak memory of a call in a fresh process, less what that held before, in bytes.

    The function is imported there by its name, and its arguments are pickled.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_call, function, arguments).result()


def _peak_of_call(function: Callable[..., object], arguments: tuple) -> int:
    before = psutil.Process().memory_info().rss
    function(*arguments)
    return peak_memory_bytes() - before


def forward_flops(
    config: ModelConfig,
    lengths: Iterable[int],
    *,
    head: str | None = None,
    trimmed: bool = False,
    head_tokens: int | None = None,
) -> int:
    """Matrix-product FLOPs (2 per multiply-add) of a forward pass over sequences, one by one.

    For length L, width H and inner width F a block takes 2·L·(4·H² + 2·H·F) for its linear layers
    and 4·L²·H for attention. `head` is None (the bare encoder, with BERT's pooler),
    "classification" (two labels) or "mlm" (transform and vocabulary projection of every token, or
    of `head_tokens` in all). `trimmed` counts our classifier, whose last block computes only the
    first position after its joint query-key-value product; transformers' computes all.
    """
    length = np.asarray(list(lengths), dtype=np.int64)
    hidden, inner = config.hidden_size, config.intermediate_size

    def block(positions: np.ndarray) -> np.ndarray:
        joint = 2 * length * 3 * hidden**2
        per_position = 2 * hidden**2 + 4 * hidden * inner
        return joint + positions * (per_position + 4 * length * hidden)

    last = np.ones_like(length) if trimmed else length
    total = int(((config.num_layers - 1) * block(length) + block(last)).sum())
    if head == "mlm":
        projected = int(length.sum()) if head_tokens is None else head_tokens
        return total + 2 * projected * hidden * (hidden + config.vocab_size)
    if config.model_type != "distilbert" or head == "classification":
        total += 2 * hidden**2 * len(length)  # the pooler, or DistilBERT's pre-classifier
    if head == "classification":
        total += 2 * 2 * hidden * len(length)
    return total


def training_flops(
    student: ModelConfig,
    lengths: Iterable[int],
    head_tokens: int | None = None,
    teacher: ModelConfig | None = None,
    teacher_head_tokens: int | None = None,
) -> int:
    """Matrix-product FLOPs of training a masked LM on sequences, under a teacher if there is one.

    3 x the student's forward pass + 1 x the teacher's: for each product the backward pass has two,
    one for each factor's gradient (arXiv 2001.08361, section 2.1, says the same of parameters).
    Padding, recomputation and the optimiser are not counted: it is what the objective asks for.
    """
    lengths = list(lengths)
    total = 3 * forward_flops(student, lengths, head="mlm", head_tokens=head_tokens)
    if teacher is not None:
        total += forward_flops(teacher, lengths, head="mlm", head_tokens=teacher_head_tokens)
    return total


def head_training_flops(model: ModelConfig, lengths: Iterable[int], head_tokens: int) -> int:
    """The same of training a masked-LM head alone: 1 x the forward pass, and the head's backward.

    The transform has a gradient of each factor, the decoder of its input only: it is frozen.
    """
    backward = 2 * head_tokens * model.hidden_size * (2 * model.hidden_size + model.vocab_size)
    return forward_flops(model, list(lengths), head="mlm", head_tokens=head_tokens) + backward


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
