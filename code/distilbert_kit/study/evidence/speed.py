"""From the records of benchmarks and quantisation to the rows of size and speed in the report."""

from ...data.tasks import get_task
from ..recipes import Recipe
from ..records import Record
from .scores import present_records


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


def speed_rows(record: Record) -> list[dict]:
    """The paper's Table 3 for each number of threads and implementation.

    `outside_layers` is the share of DistilBERT's pass spent outside its layers, if a layer and the
    rest cost the same in both models: with x for the six layers and o for the rest, the ratio is
    (2x + o) / (x + o), so that o / (x + o) = 2 - ratio.
    """
    rows = []
    for threads, measured in thread_settings(record).items():
        for maker, found in measured["bert_over_distilbert"].items():
            seconds = {
                model: measured["median_pass_seconds"][f"{model}/{maker}"]
                for model in ("bert", "distilbert")
            }
            rates = {
                model: record.metrics["flops"][f"{model}/{maker}"] / seconds[model] / 1e9
                for model in seconds
            }
            rows.append(
                {
                    "threads": threads,
                    "maker": maker,
                    "seconds": seconds,
                    **{name: found[name] for name in ("ratio", "low", "high")},
                    "less_time": 1 - 1 / found["ratio"],
                    "flops_ratio": record.metrics["flops_ratio"][maker],
                    "outside_layers": 2 - found["ratio"],
                    "gflops_per_second": rates,
                    "machine_gflops_per_second": measured["fp32_gflops"],
                }
            )
    return rows


def quantized_rows(recipe: Recipe) -> list[dict]:
    """Size, score and latency of each exported or quantised form, measured after reloading."""
    rows = []
    for name, record in present_records(recipe).items():
        if record.stage != "quantize":
            continue
        task = get_task(record.cell["task"])
        scores, latency = record.metrics[task.eval_splits[0]], record.measured.extra["latency"]
        for form, size in record.metrics["size"].items():
            rows.append(
                {
                    "record": name,
                    "label": recipe.models[record.cell["model"]].label,
                    "task": task.name,
                    "form": form,
                    **{key: size[key] for key in ("bytes", "parameters")},
                    "score": scores[form][task.primary],
                    "agreement": scores[form].get("agreement"),
                    "milliseconds": {
                        str(row["length"]): row[f"{form}_milliseconds"] for row in latency
                    },
                }
            )
    return rows
