"""Invented but coherent records of a recipe, for tests of what is made of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from benchmarks import distillation_speed, shared, size_speed, training_speed
from distilbert_kit.data.sources import DataUsed
from distilbert_kit.data.tasks import get_task
from distilbert_kit.paths import RECIPES
from distilbert_kit.study.cells import evidence_cells
from distilbert_kit.study.csv_pipeline import accuracies
from distilbert_kit.study.recipes import Recipe, load_recipe
from distilbert_kit.study.records import recording
from distilbert_kit.training import classification

RECIPE = yaml.safe_load((RECIPES / "quick.yaml").read_text()) | {
    "name": "tiny",
    "seeds": [0, 1],
}
SIZES = {  # config.json of bert-base-uncased and distilbert-base-uncased, counted by hand
    "bert": {"parameters_embeddings": 23_837_184, "parameters_pooler": 590_592, "layers": 12},
    "distilbert": {"parameters_embeddings": 23_835_648, "parameters_pooler": 0, "layers": 6},
}
ENCODERS = {"bert": 109_482_240, "distilbert": 66_362_880}  # the two checkpoints of the hub
SKILL = {"teacher": 0.9, "random_initialisation": 0.6}  # the others: 0.8
RATES = {"fp32_gflops": 100.0, "bf16_gflops": 200.0}


def fill_extract(draft, cell, rng):
    draft.metrics = {"parameters": 17_000_000, "layers": [0, 2, 4], "copied": "all"}


def fill_corpus(draft, cell, rng):
    split = {"documents": 9, "sequences": 90, "tokens": 9000, "shards": []}
    draft.metrics = {
        "splits": {"train": split, "validation": split},
        "dropped": {"short": 1, "unknown": 0, "duplicate": 2},
        "settings": {"max_length": 512},
    }


def fill_masked_lm(draft, cell, rng):
    terms = ("ce", "mlm", "cos") if cell.stage == "distill" else ("mlm",)
    draft.metrics = {
        "parameters": 17_000_000,
        "train_tokens": round(9000 * cell.settings["training"]["epochs"]),
        "updates": 3,
        "history": [
            {"update": u, "learning_rate": 1e-4} | dict.fromkeys(terms, 5.0 / u) for u in (1, 2, 3)
        ],
        "validation": {"before": dict.fromkeys(terms, 5.0), "after": dict.fromkeys(terms, 2.0)},
    }
    draft.extra = {"train_seconds": 9.0, "train_tokens_per_second": 1000.0}


def fill_finetune(draft, cell, rng):
    """Predictions of which a model gets about its share of `SKILL` right."""
    task, count = get_task(cell.identity["task"]), 120
    draft.metrics["train_examples"] = 64
    draft.metrics["history"] = [
        {"update": u, "loss": 0.7 / u, "learning_rate": 1e-4} for u in (1, 2, 3)
    ]
    draft.extra = {"train_seconds": 1.0, "train_examples_per_second": 64.0}
    references = np.arange(count) % task.num_labels
    skill = SKILL.get(cell.identity["model"], 0.8)
    draft.data.append(DataUsed(name=f"{task.dataset}/train", rows=64, sha256="0" * 64))
    for split, path in zip(task.eval_splits, cell.outputs, strict=True):
        wrong = rng.random(count) > skill
        logits = np.eye(task.num_labels)[(references + wrong) % task.num_labels]
        draft.metrics[split] = classification.score(logits, references, task) | {"truncated": 0}
        columns = {"row": np.arange(count), "reference": references}
        columns |= {"prediction": logits.argmax(1)}
        columns |= {f"logit_{i}": logits[:, i] for i in range(task.num_labels)}
        columns["tokens"] = 8 + 7 * np.arange(count) % 52
        if task.dataset.startswith("embedded/"):
            columns["phenomenon"] = np.where(np.arange(count) % 3, "negation", "plain")
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(path, index=False)


def fill_benchmark(draft, cell, rng):
    {
        "size_speed": fill_size_speed,
        "shape_speed": fill_shapes,
        "inference_speed": fill_inference,
        "training_speed": fill_training,
        "distillation_speed": fill_distillation,
        "corpus_speed": fill_corpus_speed,
        "question_answering_speed": fill_answering,
        "latency": fill_latency,
    }[cell.name](draft, cell, rng)


def fill_size_speed(draft, cell, rng):
    lengths = np.sort(rng.integers(8, 80, 60))
    size = {}
    taken = {}
    for model, counts in SIZES.items():
        layers = counts["layers"]
        for maker in shared.MAKERS:
            size[f"{model}/{maker}"] = counts | {
                "parameters_per_layer": 7_087_872,
                "parameters": ENCODERS[model],
                "bytes_fp32": 4_000_000 * layers,
                "bytes_fp16": 2_000_000 * layers,
            }
            seconds = 1e-4 * (layers * (2 + lengths / 20) + 1) * (1.1 - 0.1 * (maker == "ours"))
            taken[f"{model}/{maker}"] = seconds * rng.lognormal(0, 0.05, (3, len(lengths)))
    draft.metrics = {
        "weights": "random",
        "head": "none",
        "text": "length profile",
        "pairs": len(lengths),
        "share_of_pairs": len(lengths) / 1500,
        "passes": 3,
        "mean_tokens": float(lengths.mean()),
        "longest": int(lengths.max()),
        "size": size,
    } | size_speed.count_flops(lengths)
    for threads in (1, 2):
        draft.extra[f"threads_{threads}"] = (
            shared.pass_totals(taken, *shared.MODELS)
            | size_speed.summarise_passes(taken, lengths)
            | RATES
        )


def fill_shapes(draft, cell, rng):
    shape = {"layers": 12, "width": 576, "parameters": 65_800_000, "flops": 9 * 10**11}
    shallow = {"layers": 6, "width": 768, "parameters": 66_362_880, "flops": 8 * 10**11}
    draft.metrics = {"pairs": 60, "shapes": {"narrow": shape, "shallow": shallow}}
    seconds = {"narrow": [1.3, 1.5], "shallow": [1.0, 1.0]}
    draft.extra["threads_2"] = RATES | {
        "pass_seconds": {f"{name}/{by}": seconds[name] for name in seconds for by in shared.MAKERS},
        "over_pairs": {
            "ours": {"low": 1.2, "high": 1.45},
            "transformers": {"low": 1.35, "high": 1.45},
        },
    }


def fill_inference(draft, cell, rng):
    by_length = []
    for length in (16, 32, 64, 128, 256, 512):
        times = {name: rng.lognormal(0, 0.1, 9) * length * 1e-4 for name in "abcd"}
        row = {"length": length}
        for name, values in zip(
            ("ours", "transformers", "ours_encoder", "transformers_encoder"),
            times.values(),
        ):
            row[f"{name}_milliseconds"] = round(1e3 * float(np.median(values)), 3)
        row["classifier"] = shared.median_ratio(times["b"], times["a"])
        row["encoder"] = shared.median_ratio(times["d"], times["c"])
        by_length.append(row)
    draft.metrics = {"text": "length profile", "pairs": 60, "length_repeats": 9}
    draft.metrics["padding"] = {
        "real_tokens": 900,
        "padded_8_tokens": 1300,
        "padded_32_tokens": 1600,
    }
    draft.extra = {f"threads_{n}": {"by_length": by_length} | RATES for n in (1, 2)}
    draft.extra["file_order"] = {
        "ours_seconds": [1.0, 1.1, 1.0],
        "padded_8_seconds": [2.0, 2.1, 2.2],
        "padded_32_seconds": [2.0, 2.1, 2.2],
    }
    draft.extra["largest_logit_difference"] = 1e-6


def measured_precisions():
    return [name for name in ("fp32", "bf16") if RATES[f"{name}_gflops"]]


def fill_training(draft, cell, rng):
    best = measured_precisions()[-1]
    names = ("ours", f"trainer_{best}_grouped", "trainer_fp32")
    draft.metrics = {
        "examples": 64,
        "batch_size": 32,
        "precision": best,
        "dev_accuracy": training_speed.summarise_accuracy(
            {name: [700, 705, 710] for name in names}, 872
        ),
    }
    draft.extra = RATES | {
        "seconds": {name: list(rng.lognormal(1 + (name != "ours"), 0.1, 3)) for name in names}
    }


def fill_distillation(draft, cell, rng):
    names = [f"{maker}_{p}" for maker in ("textbook", "ours") for p in measured_precisions()]
    best = [name for name in names if name.endswith(measured_precisions()[-1])]

    def taken(names):
        parts = dict.fromkeys((*distillation_speed.PARTS, "rest"), 0.5)
        rows = {n: 2 * [parts | {"total": 3.5 + n.startswith("textbook")}] for n in names}
        return distillation_speed.summarise_updates(rows)

    draft.metrics = {
        "batch": {"sequences": 16, "length": 128},
        "flops_an_update": 10**12,
        "corpus": {
            "sequences": 24,
            "updates": 12,
            "real_tokens": 11000,
            "mean_length": 458.3,
            "textbook_order": "grouped by length",
        },
    }
    draft.extra = RATES | taken(names) | {"corpus": taken(best)}
    draft.extra["peak_memory_bytes"] = dict.fromkeys(names, 2 * 10**9)
    draft.extra["loss"] = {
        "head_dtype": {"fp32": "float32", "bf16": "bfloat16"},
        "ours_fp32_relative": 1e-7,
        "ours_bf16_relative": 1e-5,
    }


def fill_corpus_speed(draft, cell, rng):
    draft.metrics = {"tokens": 1000}
    draft.extra = {
        "seconds": {"ours": [1.0, 1.1], "slow": [9.0, 9.9]},
        "peak_memory_bytes": {"1": 10**7, "2": 10**7},
        "peak_memory_growth": 0.0,
    }


def fill_answering(draft, cell, rng):
    draft.metrics = {"questions": 40, "same_answers": 1.0}
    draft.extra = {"seconds": {"ours": [4.0, 5.0], "textbook": [10.0, 11.0]}}


def fill_latency(draft, cell, rng):
    """Two backends of the paper-size models, and one that was not measured."""
    starts, rows, operators = [], [], []
    for model, depth in {"bert": 12, "distilbert": 6}.items():
        for backend, pace in {"torch_ours": 1.0, "onnx_int8": 0.5}.items():
            key = {"size": "paper", "model": model, "backend": backend, "threads": 1}
            starts.append(key | {"bytes": round(4 * ENCODERS[model] * pace)})
            for length in cell.settings["lengths"]:
                times = {"p50": pace * depth * length / 10, "calls": 9}
                rows.append(key | {"batch": 1, "length": length} | times)
        lacking = {"size": "paper", "model": model, "backend": "torch_bf16"}
        rows.append(lacking | {"not_measured": shared.NO_BF16})
        times = {"DynamicQuantizeMatMul": 3.0, "MatMul": 1.0, "Gelu": 1.0}
        longest = {"length": max(cell.settings["lengths"]), "milliseconds": times}
        operators.append(lacking | {"backend": "onnx_int8"} | longest)
    draft.extra = {"instructions": ["avx2"], "rates": {"1": dict(RATES)}}
    draft.extra |= {"starts": starts, "rows": rows, "texts": [], "operators": operators}


def write_csv_record(recipe: Recipe) -> None:
    """What `distill_csv.py` says of two seeds, in the recipe's folder."""
    rng = np.random.default_rng(1)
    answers = pd.DataFrame({"seed": np.repeat([0, 1], 60), "label": np.tile(["x", "y"], 60)})
    for model, skill in {"teacher": 0.95, "student": 0.9, "student-random": 0.5}.items():
        answers[model] = answers["label"].where(rng.random(120) < skill, "x")
    provenance = {"stage": "csv", "cell": {"csv": "news.csv", "seeds": [0, 1]}, "recipe": "none"}
    settings = {"teacher": "minilm", "epochs": 2.0, "max_length": 64}
    path = recipe.folder / "csv" / "news.json"
    with recording(path, scale="reduced", settings=settings, **provenance) as draft:
        draft.data = [DataUsed(name="news.csv/test", rows=60, sha256="0" * 64)]
        size = {"size": {"bytes": 90_000_000, "parameters": 22_000_000}}
        draft.metrics = {"accuracy": accuracies(answers)}
        draft.metrics |= dict.fromkeys(draft.metrics["accuracy"], size)
        draft.extra["milliseconds_per_text"] = dict.fromkeys(draft.metrics["accuracy"], 9.5)


def write_evidence(recipe: Recipe) -> None:
    """A record for every cell of a recipe, with invented but coherent contents."""
    rng = np.random.default_rng(0)
    fill = {
        "corpus": fill_corpus,
        "extract": fill_extract,
        "pretrain": fill_masked_lm,
        "distill": fill_masked_lm,
        "finetune": fill_finetune,
        "benchmark": fill_benchmark,
    }
    for cell in evidence_cells(recipe):
        with recording(cell.record, **cell.provenance) as draft:
            fill[cell.stage](draft, cell, rng)


def make_recipe(folder: Path, **changes) -> Recipe:
    """The recipe `quick`, two seeds, with changes, written into a folder."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return load_recipe(path)
