"""From the records of benchmarks and quantisation to the rows of size and speed in the report."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ...data.tasks import get_task
from ..cells import benchmark_cell
from ..recipes import Recipe
from ..records import Record
from .history import present_records

PAIRS = {"STS-B dev": "STS-B dev pairs", "length profile": "pairs with STS-B's lengths"}
TRAINERS = {
    "ours": "ours",
    "trainer_fp32": "Trainer as it comes: fp32, random order",
    "trainer_fp32_grouped": "Trainer at its best: fp32, grouped by length",
    "trainer_bf16_grouped": "Trainer at its best: bf16, grouped by length",
}
STEPS = {
    "textbook_fp32": "plain PyTorch, fp32",
    "textbook_bf16": "plain PyTorch, bf16 autocast",
    "ours_fp32": "ours, fp32",
    "ours_bf16": "ours, bf16 autocast",
}


def size_rows(record: Record) -> list[dict]:
    """Parameters by part and bytes of the paper's two models, from the record of size_speed."""
    rows = []
    for model in ("bert", "distilbert"):
        size = record.metrics["size"][f"{model}/ours"]
        rows.append(
            {
                "model": model,
                "parameters": size["parameters"],
                "embeddings": size["parameters_embeddings"],
                "layers": size["layers"] * size["parameters_per_layer"],
                "pooler": size["parameters_pooler"],
                "number_of_layers": size["layers"],
                "bytes_fp32": size["bytes_fp32"],
                "bytes_fp16": size["bytes_fp16"],
            }
        )
    return rows


def thread_settings(record: Record) -> dict[int, dict]:
    """What a benchmark measured, by number of threads."""
    names = [name for name in record.measured.extra if name.startswith("threads_")]
    return {int(name.removeprefix("threads_")): record.measured.extra[name] for name in names}


def ratio_of_totals(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Total seconds over total seconds, and the range of the rounds' own ratios.

    Both [rounds], measured in turn. The paper's 668 s over 410 s is such a ratio. It lies within
    the range, and rounds are few: the range is from the least to the most, no interval.
    """
    each = np.asarray(slower) / np.asarray(faster)
    return {
        "ratio": float(np.sum(slower) / np.sum(faster)),
        "low": float(each.min()),
        "high": float(each.max()),
        "rounds": len(each),
    }


def ratio_rows(record: Record, slower: str, faster: str) -> list[dict]:
    """The ratio of two models' times for each number of threads and implementation.

    `low` and `high` are the range over the passes, `over_pairs` the bootstrap interval over the
    pairs (None: the record is older than it).
    """
    rows = []
    for threads, measured in thread_settings(record).items():
        passes = measured["pass_seconds"]
        for maker in dict.fromkeys(name.partition("/")[2] for name in passes):
            row = ratio_of_totals(passes[f"{slower}/{maker}"], passes[f"{faster}/{maker}"])
            over_pairs = measured.get("over_pairs", {}).get(maker)
            rows.append({"threads": threads, "maker": maker, **row, "over_pairs": over_pairs})
    return rows


def speed_rows(record: Record) -> list[dict]:
    """The paper's Table 3: `ratio_rows` with seconds and FLOP/s.

    `outside_layers` is the share of DistilBERT's pass spent outside its layers, if a layer and the
    rest cost the same in both models: with x for the six layers and o for the rest, the ratio is
    (2x + o) / (x + o), so that o / (x + o) = 2 - ratio.
    """
    rows, settings = [], thread_settings(record)
    for row in ratio_rows(record, "bert", "distilbert"):
        maker, measured = row["maker"], settings[row["threads"]]
        seconds = {
            model: float(np.mean(measured["pass_seconds"][f"{model}/{maker}"]))
            for model in ("bert", "distilbert")
        }
        rows.append(
            row
            | {
                "seconds": seconds,
                "less_time": 1 - 1 / row["ratio"],
                "flops_ratio": record.metrics["flops_ratio"][maker],
                "outside_layers": 2 - row["ratio"],
                "gflops_per_second": {
                    model: record.metrics["flops"][f"{model}/{maker}"] / each / 1e9
                    for model, each in seconds.items()
                },
                "machine_gflops_per_second": measured["fp32_gflops"],
            }
        )
    return rows


def shape_rows(record: Record) -> list[dict]:
    """`ratio_rows` of less width over fewer layers."""
    return ratio_rows(record, "narrow", "shallow")


def shapes(record: Record | None) -> dict | None:
    """Fewer layers against less width; None without the record of shape_speed."""
    return record and record.metrics | {"rows": shape_rows(record)}


def least_favourable(rows: Sequence[dict]) -> dict:
    """Of `speed_rows` or `shape_rows` the one that shows least, and its `bounds`.

    The claim is judged on these: the wider ones of the range over the passes and the interval over
    the pairs, where the record has that.
    """
    bounded = []
    for row in rows:
        ends = [row, row["over_pairs"] or row]
        bounds = [min(end["low"] for end in ends), max(end["high"] for end in ends)]
        bounded.append(row | {"bounds": bounds})
    return min(bounded, key=lambda row: row["bounds"][0])


def rate_rows(rows: Sequence[dict]) -> list[dict]:
    """How much of the machine's own rate of matrix products the models of `speed_rows` reach."""
    return [
        {
            "model": model,
            "maker": row["maker"],
            "threads": row["threads"],
            "gflops_per_second": rate,
            "machine": row["machine_gflops_per_second"],
            "share": rate / row["machine_gflops_per_second"],
        }
        for row in rows
        for model, rate in row["gflops_per_second"].items()
    ]


def latency(recipe: Recipe) -> dict:
    """Milliseconds by length, with the most threads measured, as `drawings` draws them."""
    pairs, fixed = (
        benchmark_cell(recipe, stage).read_record() for stage in ("size_speed", "inference_speed")
    )
    return {
        "bins": max(thread_settings(pairs).items())[1]["latency_by_length"],
        "by_length": max(thread_settings(fixed).items())[1]["by_length"],
        "pairs": PAIRS[pairs.metrics["text"]],
    }


def inference_rows(record: Record) -> list[dict]:
    """Transformers' time over ours with the same weights, by length and over padded batches.

    By length the ratio is the median of neighbouring calls with their middle half, over the pairs
    that of totals with the range of the passes.
    """
    rows, settings = [], thread_settings(record)
    for threads, measured in settings.items():
        for row in measured["by_length"]:
            found = row["classifier"]
            ends = {"low": found["quartile_1"], "high": found["quartile_3"]}
            what = f"{row['length']} tokens"
            rows.append({"threads": threads, "what": what, "ratio": found["ratio"], **ends})
    passes = record.measured.extra["file_order"]
    for name in passes:
        if name.startswith("padded_") and name.endswith("_seconds"):
            what = f"{PAIRS[record.metrics['text']]}, batches of {name.split('_')[1]}"
            found = ratio_of_totals(passes[name], passes["ours_seconds"])
            rows.append({"threads": max(settings), "what": what, **found})
    return rows


def trainer_at_its_best(record: Record) -> str:
    """The candidate of training_speed that ours is held against: grouped by length."""
    return next(name for name in record.measured.extra["seconds"] if name.endswith("_grouped"))


def training_rows(record: Record) -> list[dict]:
    """Fine-tuning: ours, the Trainer at its best, and then other ways to run either.

    `over_ours` is its time over that of ours (None for ours).
    """
    seconds = record.measured.extra["seconds"]
    first = ["ours", trainer_at_its_best(record)]
    rows = []
    for name in [*first, *(name for name in seconds if name not in first)]:
        over = None if name == "ours" else ratio_of_totals(seconds[name], seconds["ours"])
        rows.append(
            {
                "name": TRAINERS[name],
                "examples_per_second": record.metrics["examples"] / float(np.mean(seconds[name])),
                "over_ours": over,
                "dev_accuracy": record.metrics["dev_accuracy"][name],
            }
        )
    return rows


def best_precision(record: Record) -> str:
    """bf16 where the machine of a record measured it, else fp32."""
    return "fp32" if record.measured.extra["bf16_gflops"] is None else "bf16"


def bf16_note(record: Record | None) -> str | None:
    """Why a record has no rows in bf16; None where it has them, or without a record."""
    return record and record.measured.extra.get("bf16")


def distillation_rows(record: Record) -> list[dict]:
    """A distillation step, the textbook's and ours, in each precision that was measured.

    `over_ours` is the time over that of our step in the same precision, `over_best` over that of
    our fastest; `corpus_…` the same at real lengths. `loss` is the relative distance of our loss
    in that precision from the textbook's in fp32. None where there is nothing to compare, and for
    the loss in bf16 of a record that does not say that the head answered in it.
    """
    measured, metrics, best = record.measured.extra, record.metrics, best_precision(record)
    tokens = metrics["batch"]["sequences"] * metrics["batch"]["length"]
    corpus_tokens = metrics["corpus"]["real_tokens"] / metrics["corpus"]["updates"]
    peak = measured[f"{best}_gflops"] * 1e9
    dtypes = measured["loss"].get("head_dtype", {})
    known = {"fp32": True, "bf16": dtypes.get("bf16") == "bfloat16"}

    def over(seconds: dict, name: str, ours: str) -> dict | None:
        theirs = name.startswith("textbook") and name in seconds and ours in seconds
        return ratio_of_totals(seconds[name], seconds[ours]) if theirs else None

    rows = []
    for name, each in measured["seconds"].items():
        precision, at_lengths = name.split("_")[1], measured["corpus"]["seconds"]
        taken = float(np.mean(each))
        rows.append(
            {
                "name": STEPS[name],
                "variant": name,
                "tokens_per_second": tokens / taken,
                "share": metrics["flops_an_update"] / taken / peak,
                "memory": measured["peak_memory_bytes"][name],
                "loss": measured["loss"].get(f"{name}_relative") if known[precision] else None,
                "over_ours": over(measured["seconds"], name, f"ours_{precision}"),
                "over_best": over(measured["seconds"], name, f"ours_{best}"),
                "on_corpus": (
                    corpus_tokens / float(np.mean(at_lengths[name])) if name in at_lengths else None
                ),
                "corpus_over_ours": over(at_lengths, name, f"ours_{precision}"),
                "corpus_over_best": over(at_lengths, name, f"ours_{best}"),
            }
        )
    return rows


def distillation_step(record: Record | None) -> dict | None:
    """What the report says about a distillation step; None without its record."""
    return record and {
        "batch": record.metrics["batch"],
        "corpus": record.metrics["corpus"],
        "precision": best_precision(record),
        "bf16": bf16_note(record),
        "peak_gflops": record.measured.extra[f"{best_precision(record)}_gflops"],
        "rows": distillation_rows(record),
    }


def step_parts(record: Record) -> pd.DataFrame:
    """Seconds of each part of an update; one row per implementation."""
    parts = pd.DataFrame(record.measured.extra["seconds_by_part"]).T.drop(columns="total")
    return parts.rename(index=STEPS)


def answering(record: Record | None) -> dict | None:
    """Questions a second beside the usual loop of transformers; None without its record."""
    if record is None:
        return None
    seconds = record.measured.extra["seconds"]
    return record.metrics | {
        "questions_per_second": {
            name: record.metrics["questions"] / float(np.mean(each))
            for name, each in seconds.items()
        },
        "over_ours": ratio_of_totals(seconds["textbook"], seconds["ours"]),
    }


def preparing(record: Record | None) -> dict | None:
    """Corpus preparation beside one slow call a line, and its memory; None without its record."""
    if record is None:
        return None
    measured = record.measured.extra
    return {
        "tokens_per_second": record.metrics["tokens"] / float(np.mean(measured["seconds"]["ours"])),
        "over_ours": ratio_of_totals(measured["seconds"]["slow"], measured["seconds"]["ours"]),
        "peak_memory_bytes": measured["peak_memory_bytes"],
        "peak_memory_growth": measured["peak_memory_growth"],
    }


def quantized_rows(recipe: Recipe) -> list[dict]:
    """Size and score of each exported or quantised form, measured after reloading.

    `gap`: the score minus that of PyTorch in fp32, whose own is None. `in_fp32`: how many linear
    layers the int8 form keeps in fp32.
    """
    rows = []
    for name, record in present_records(recipe).items():
        if record.stage != "quantize":
            continue
        task = get_task(record.cell["task"])
        scores = record.metrics[task.eval_splits[0]]
        for form, size in record.metrics["size"].items():
            rows.append(
                {
                    "record": name,
                    "model": record.cell["model"],
                    "label": recipe.models[record.cell["model"]].label,
                    "task": task.name,
                    "form": form,
                    **{key: size[key] for key in ("bytes", "parameters")},
                    "score": scores[form][task.primary],
                    "agreement": scores[form].get("agreement"),
                    "gap": scores[form].get("gap"),
                    "in_fp32": len(record.metrics["in_fp32"]) if form == "onnx_int8" else None,
                }
            )
    return rows
