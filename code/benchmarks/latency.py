"""Latency of teacher and student by backend, length, batch and threads, each in its own process.

Models of paper size and of the study's own size, classifiers with random weights: time does not
depend on them. Each is saved; a fresh process for each backend loads it, answers, and stays to be
timed. Within a point (threads, batch, length) all models and backends of a size are called in an
order drawn anew each round, so that a busy spell of the machine falls on all of them alike.

The int8 route of PyTorch 2.13 is torchao: torch.ao.quantization is deprecated (pytorch/ao#2259).
"""

import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from distilbert_kit.machine import has_bf16_instructions, matrix_instructions, peak_memory_bytes
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForSequenceClassification
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.serve.export import FILES, OnnxModel, save_onnx, size_on_disk
from distilbert_kit.study.deployment import random_batch
from distilbert_kit.study.measure import int8_product_rate, threads
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.settings import ENCODERS, LatencySettings

from .shared import CONFIGS, NO_BF16, infer, machine_rates, stsb_pairs, thread_counts

SIZES = {  # teacher and student of each size
    "paper": CONFIGS,
    "study": {model: create_model_config(preset) for model, preset in ENCODERS["study"].items()},
}
NOT_INSTALLED = "not measured: not installed"
NO_COMPILER = "not measured: no compiler"
SPACE = "not measured: torch.compile fails where PyTorch's own path has a space"
TOO_LONG = "not measured: a call takes longer than the recipe allows"
Item = dict[str, Tensor] | list


def load_ours(folder: Path) -> nn.Module:
    return DistilBERTForSequenceClassification.from_pretrained(folder).eval()


def load_transformers(folder: Path) -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def load_compiled(folder: Path) -> nn.Module:
    return torch.compile(load_ours(folder), dynamic=True)


def load_bf16(folder: Path) -> nn.Module:
    return load_ours(folder).to(torch.bfloat16)


def load_torchao(folder: Path) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = load_ours(folder)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model  # compiled it was no faster here (AVX2), and took a minute more to start


BACKENDS: dict[str, Callable[[Path], nn.Module]] = {
    "torch_ours": load_ours,
    "torch_transformers": load_transformers,
    "torch_compiled": load_compiled,
    "torch_bf16": load_bf16,
    "torch_int8": load_torchao,
    "onnx_fp32": lambda folder: OnnxModel(folder / "onnx", "fp32"),
    "onnx_int8": lambda folder: OnnxModel(folder / "onnx", "int8"),
}


def why_not(backend: str) -> str | None:
    """Why a backend is not measured on this machine; None where it is."""
    package = {"torch_int8": "torchao", "onnx_fp32": "onnxruntime", "onnx_int8": "onnxruntime"}
    if backend in package and importlib.util.find_spec(package[backend]) is None:
        return NOT_INSTALLED
    if backend == "torch_compiled":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return NO_COMPILER
        return SPACE if " " in torch.__file__ else None
    return NO_BF16 if backend == "torch_bf16" and not has_bf16_instructions() else None


class _Served:
    """What a process serves: it is set there by `serve`, and called by `call`."""

    model: nn.Module
    tokenizer: Callable


def serve(backend: str, folder: Path, count: int) -> dict:
    """Load a model in this process with `count` threads and give a first answer.

    Returns the seconds of both and, as `import`, those since the process began, and the logits.
    """
    imported = time.time() - psutil.Process().create_time()
    began = time.perf_counter()
    torch.set_num_threads(count)
    torch.compiler.reset()
    torch._logging.set_logs(dynamo=logging.ERROR)  # warns of the mask, which we read on purpose
    # A start from nothing: graphs compiled for another number of threads are not those of this one.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"{backend}-{count}")
    _Served.model, _Served.tokenizer = BACKENDS[backend](folder), get_tokenizer(folder)
    loaded = time.perf_counter()
    logits = infer(_Served.model, random_batch(_Served.model, 16)).logits
    return {
        "seconds": {
            "import": imported,
            "load": loaded - began,
            "first_answer": time.perf_counter() - loaded,
        },
        "logits": logits.float().numpy(),
    }


def call(item: Item) -> tuple[float, float]:
    """Seconds of tokenising and of the model, for a batch of ids or a list of texts or pairs."""
    began = time.perf_counter()
    if isinstance(item, list):
        item = dict(_Served.tokenizer(item, padding=True, truncation=True, return_tensors="pt"))
    ready = time.perf_counter()
    infer(_Served.model, item)
    return ready - began, time.perf_counter() - ready


def save_models(size: str, folder: Path, backends: list[str]) -> dict[str, Path]:
    """Classifiers with random weights, as weights and as graphs; their folders by model."""
    folders = {model: folder / model for model in SIZES[size]}
    for model, path in folders.items():
        torch.manual_seed(0)
        classifier = DistilBERTForSequenceClassification(SIZES[size][model], 2).eval()
        classifier.save_pretrained(path, get_tokenizer())
        if any(name.startswith("onnx") and why_not(name) is None for name in backends):
            save_onnx(classifier, path / "onnx", get_tokenizer())
    return folders


def read_by(backend: str, folder: Path) -> Path:
    """The folder of weights or the graph that a backend loads."""
    graph = backend.removeprefix("onnx_")
    return folder / "onnx" / FILES[graph] if graph in FILES else folder


def alternate_at_random(
    workers: dict[tuple, ProcessPoolExecutor], items: list[Item], settings: LatencySettings
) -> dict[tuple, np.ndarray]:
    """Seconds [rounds, 2] of tokenising and model in each worker, summed over the items.

    One round warms up; then each worker is called until it has worked for `settings.seconds`,
    within the bounds on rounds: a slow one takes no calls from the others.
    """
    random = np.random.default_rng(0)
    taken: dict[tuple, list] = {name: [] for name in workers}

    def wants_more(name: tuple) -> bool:
        rounds = taken[name][1:]
        if len(rounds) < settings.least_rounds:
            return True
        return len(rounds) < settings.most_rounds and np.sum(rounds) < settings.seconds

    while ready := list(filter(wants_more, workers)):
        for place in random.permutation(len(ready)):
            each = [workers[ready[place]].submit(call, item).result() for item in items]
            taken[ready[place]].append(np.sum(each, axis=0))
    return {name: np.array(values[1:]) for name, values in taken.items()}


def quantiles(seconds: np.ndarray) -> dict[str, float | int]:
    """p50, p90 and p99 in milliseconds, and the calls they come from."""
    found = np.round(1e3 * np.quantile(seconds, (0.5, 0.9, 0.99)), 4).tolist()
    return dict(zip(("p50", "p90", "p99"), found), calls=len(seconds))


def foresee(
    workers: dict[tuple, ProcessPoolExecutor],
    pace: dict[tuple, float],
    tokens: int,
    settings: LatencySettings,
) -> tuple[dict[tuple, ProcessPoolExecutor], list[tuple]]:
    """The workers that are quick enough for a call of so many tokens, and the names of the rest."""
    ready = {k: w for k, w in workers.items() if pace.get(k, 0) * tokens <= settings.longest_call}
    return ready, [key for key in workers if key not in ready]


def measure_points(
    workers: dict[tuple, ProcessPoolExecutor],
    settings: LatencySettings,
    batch: int,
    model: nn.Module,
    pace: dict[tuple, float],
) -> Iterator[dict]:
    """A row for each worker and length; a worker whose call would last too long has no time.

    `pace`: seconds a token of each worker where it was measured last, kept up to date. What a
    point takes is foreseen from it.
    """
    for length in settings.lengths:
        point, tokens = {"batch": batch, "length": length}, batch * length
        ready, left_out = foresee(workers, pace, tokens, settings)
        item = {k: v.expand(batch, -1) for k, v in random_batch(model, length).items()}
        for key, seconds in alternate_at_random(ready, [item], settings).items():
            pace[key] = float(np.median(seconds[:, 1])) / tokens
            yield {"key": key} | point | quantiles(seconds[:, 1])
        yield from ({"key": key} | point | {"not_measured": TOO_LONG} for key in left_out)


def measure_texts(
    workers: dict[tuple, ProcessPoolExecutor],
    settings: LatencySettings,
    pairs: list[tuple[str, str]],
    pace: dict[tuple, float],
) -> Iterator[dict]:
    """Texts a second over real pairs in file order, and one text with its tokenisation.

    A worker that `pace` (see measure_points) foresees too slow for a batch of the pairs has none.
    """
    batches = [
        list(pairs[i : i + settings.batches[-1]])
        for i in range(0, len(pairs), settings.batches[-1])
    ]
    tokenizer = get_tokenizer()
    ids = tokenizer(" ".join(f"{a} {b}" for a, b in pairs), truncation=True)["input_ids"]
    text = tokenizer.decode(ids[1 : settings.text_length - 1])
    tokens = max(tokenizer(b, padding=True, return_tensors="pt").input_ids.numel() for b in batches)
    ready, left_out = foresee(workers, pace, tokens, settings)
    passes = alternate_at_random(ready, batches, settings)
    alone = alternate_at_random(ready, [[text]], settings)
    for key in ready:
        yield {
            "key": key,
            "texts_per_second": round(len(pairs) / float(np.median(passes[key].sum(1))), 3),
            "passes": len(passes[key]),
            "text_tokens": len(tokenizer(text)["input_ids"]),
            "one_text": {
                "tokenise": quantiles(alone[key][:, 0]),
                "answer": quantiles(alone[key][:, 1]),
                "both": quantiles(alone[key].sum(1)),
            },
        }
    yield from ({"key": key, "not_measured": TOO_LONG} for key in left_out)


def operator_times(graph: Path, item: dict[str, Tensor], calls: int) -> dict[str, float]:
    """Milliseconds of a call in each kind of operator, one thread, by ONNX Runtime's profiler."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = True, str(graph.with_suffix(""))
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    given = {each.name: item[each.name].numpy() for each in session.get_inputs()}
    for _ in range(calls):
        session.run(None, given)
    events = pd.DataFrame(json.loads(Path(session.end_profiling()).read_text()))
    kernels = events[events["name"].str.endswith("_kernel_time")]
    times = kernels["dur"].groupby(kernels["args"].str["op_name"]).sum() / (1e3 * calls)
    return times.sort_values(ascending=False).round(4).to_dict()


def measure_size(size: str, settings: LatencySettings, pairs: list | None, bar: tqdm) -> dict:
    """All rows of a size: `starts` of the processes, `rows` by point, `texts` over real text.

    And the `operators` of the graphs at the longest length.
    """
    found: dict[str, list[dict]] = {"starts": [], "rows": [], "texts": [], "operators": []}

    def add(kind: str, row: dict, **more) -> None:
        model, backend = row.pop("key")
        found[kind].append({"size": size, "model": model, "backend": backend} | more | row)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = save_models(size, folder, settings.backends)
        workers = {}
        for key in ((model, backend) for model in folders for backend in settings.backends):
            if reason := why_not(key[1]):
                add("rows", {"key": key, "not_measured": reason})
                continue
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            workers[key] = stack.enter_context(pool)
        model = DistilBERTForSequenceClassification(next(iter(SIZES[size].values())), 2)
        for count in thread_counts():
            start, reference, pace = {}, {}, {}
            for key, worker in workers.items():
                start[key] = worker.submit(serve, key[1], folders[key[0]], count).result()
                reference.setdefault(key[0], start[key]["logits"])  # that of the first backend
                difference = np.abs(start[key].pop("logits") - reference[key[0]]).max()
                start[key]["largest_logit_difference"] = float(difference)
            for batch in settings.batches:
                for row in measure_points(workers, settings, batch, model, pace):
                    add("rows", row, threads=count)
                for key, worker in workers.items():
                    peak = worker.submit(peak_memory_bytes).result()
                    start[key].setdefault("peak_memory_bytes", {})[str(batch)] = peak
                bar.update()
            if not found["starts"]:  # later ones are of processes no longer fresh
                for key, row in start.items():
                    read = size_on_disk(read_by(key[1], folders[key[0]]))
                    add("starts", {"key": key} | read | row, threads=count)
        for row in measure_texts(workers, settings, pairs, pace) if pairs else ():
            add("texts", row, threads=count)
        longest = max(settings.lengths)
        for key in (key for key in workers if key[1].startswith("onnx")):
            graph, item = read_by(key[1], folders[key[0]]), random_batch(model, longest)
            times = operator_times(graph, item, settings.least_rounds)
            add("operators", {"key": key, "length": longest, "milliseconds": times}, threads=1)
    return found


def measure(recipe: Recipe, draft: Draft) -> str:
    """Every row of both sizes, and the machine's own rates beside them."""
    settings = recipe.latency
    _, draft.data, pairs = stsb_pairs(settings.texts)
    draft.metrics = {
        "weights": "random",
        "head": "sequence classification, 2 labels",
        "text": "STS-B dev" if pairs else "not measured: no STS-B data",
        "layers": {m: c.num_layers for models in SIZES.values() for m, c in models.items()},
    }
    draft.extra = {"instructions": matrix_instructions(), "rates": {}}
    for count in thread_counts():
        with threads(count):
            int8 = NOT_INSTALLED if why_not("onnx_int8") else round(int8_product_rate(), 1)
            draft.extra["rates"][str(count)] = machine_rates() | {"int8_gops": int8}
    points = len(settings.sizes) * len(settings.batches) * len(thread_counts())
    with tqdm(total=points, desc="latency", unit="part") as bar:
        for size in settings.sizes:
            for kind, rows in measure_size(size, settings, pairs, bar).items():
                draft.extra.setdefault(kind, []).extend(rows)
    measured = [row for row in draft.extra["rows"] if "p50" in row]
    return f"{len(measured)} of {len(draft.extra['rows'])} rows measured"
