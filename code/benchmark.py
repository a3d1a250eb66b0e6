"""Measure size and speed at paper size beside transformers, and write the record.

    python code/benchmark.py --recipe quick --stage size_speed
    python code/benchmark.py --recipe study --stage inference_speed
    python code/benchmark.py --recipe study --stage training_speed

size_speed       the paper's Table 3: parameters, bytes, and a pass over the STS-B dev pairs on the
                 CPU at batch size 1, BERT-base against DistilBERT-base
inference_speed  our DistilBERT against transformers' by length, and over STS-B dev in batches
training_speed   our fine-tuning against transformers' Trainer on SST-2, with MiniLM
question_answering_speed  SQuAD dev questions per second against the loop of transformers' examples

The models of the first two have random weights: time does not depend on their values. Table 3 is
about the encoders, so size_speed times them whole; our classifiers compute only the first position
of the last block, which would favour the shallower model.
"""

import argparse
import copy
import tempfile
import time
from functools import partial

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorWithPadding,
    DistilBertConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import question_answering_speed
from distilbert_kit.config import create_model_config
from distilbert_kit.data import (
    ClassificationDataset,
    LengthBatchSampler,
    create_dataloader,
    load_task_split,
)
from distilbert_kit.errors import UserError, entry_point
from distilbert_kit.evaluation import predict_logits
from distilbert_kit.experiment import benchmark_cell
from distilbert_kit.measure import (
    alternate,
    alternate_over,
    forward_flops,
    matrix_product_rate,
    model_size,
    rotated,
    seconds,
    threads,
)
from distilbert_kit.model import DistilBERTForSequenceClassification, DistilBERTModel
from distilbert_kit.paths import DATA, ROOT
from distilbert_kit.recipes import Recipe, SpeedSettings, TrainSettings, load_recipe
from distilbert_kit.records import DataUsed, Draft, recording
from distilbert_kit.statistics import bootstrap_ratio_interval, wilson_interval
from distilbert_kit.tasks import get_task
from distilbert_kit.training import CLASSIFICATION, train
from distilbert_kit.weights import get_tokenizer, resolve_checkpoint

MODELS = ("bert", "distilbert")
MAKERS = ("ours", "transformers")
CONFIGS = {
    "bert": create_model_config("bert-base-uncased"),
    "distilbert": create_model_config("distilbert-base-uncased"),
}
LENGTH_PROFILE = ROOT / "data" / "stsb_lengths.yaml"
BIN = 8  # tokens: width of the length bins of the latency figure
WARMUP_PAIRS = 20
PADDED_BATCHES = (8, 32)  # the Trainer's default for evaluation, and a usual one


def build_classifier(model: str, maker: str) -> nn.Module:
    """A paper-size classifier with two labels and random weights, ready for inference."""
    if maker == "ours":
        return DistilBERTForSequenceClassification(CONFIGS[model]).eval()
    config = BertConfig() if model == "bert" else DistilBertConfig()
    return AutoModelForSequenceClassification.from_config(config).eval()


def build_encoder(model: str, maker: str) -> nn.Module:
    """A paper-size encoder, BERT's with its pooler, with random weights, ready for inference."""
    if maker == "ours":
        return DistilBERTModel(CONFIGS[model]).eval()
    return AutoModel.from_config(BertConfig() if model == "bert" else DistilBertConfig()).eval()


def stsb_pairs(count: int) -> tuple[ClassificationDataset, list[DataUsed], list[str] | None]:
    """The first `count` STS-B dev pairs in file order, what was read, and their texts.

    Without the data: random tokens of the published length profile, from short to long.
    """
    tokenizer, task = get_tokenizer(), get_task("stsb")
    if (DATA / task.dataset / "validation.parquet").is_file():
        _, table, used = load_task_split(task, "validation", tokenizer, 512)
        texts = list(zip(table["sentence1"][:], table["sentence2"][:], strict=True))[:count]
        return ClassificationDataset(texts, None, tokenizer), [used], texts
    profile = yaml.safe_load(LENGTH_PROFILE.read_text())
    lengths = np.repeat(list(profile), list(profile.values()))[:count]
    dataset = ClassificationDataset([("a", "b")] * count, None, tokenizer)
    random = np.random.default_rng(0)
    dataset.input_ids = [random.integers(1000, 30000, length).tolist() for length in lengths]
    dataset.token_type_ids = [[0] * length for length in lengths]
    dataset.lengths = lengths
    return dataset, [], None


def infer(model: nn.Module, batch: dict[str, Tensor]) -> object:
    """The model's output; token types go to those that read them, as the tokenizers do."""
    with torch.inference_mode():
        if model.config.model_type == "distilbert":
            batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return model(**batch)


def classify(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of a batch."""
    return infer(model, batch).logits


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Median ratio of two times measured side by side, with its bootstrap interval."""
    found = bootstrap_ratio_interval(numerator, denominator)
    return {("ratio" if k == "estimate" else k): round(v, 4) for k, v in found.items()}


def thread_counts() -> list[int]:
    return sorted({1, torch.get_num_threads()})


def machine_rates() -> dict[str, float]:
    """The machine's own matrix products with the threads now set, GFLOP/s."""
    return {
        "fp32_gflops": round(matrix_product_rate(torch.float32), 1),
        "bf16_gflops": round(matrix_product_rate(torch.bfloat16), 1),
    }


def measure_size_speed(recipe: Recipe, draft: Draft) -> str:
    """Table 3: sizes, FLOPs and a pass over the dev pairs one by one."""
    settings = recipe.speed
    encoders = {f"{m}/{by}": build_encoder(m, by) for m in MODELS for by in MAKERS}
    dataset, draft.data, texts = stsb_pairs(1500)
    by_length = np.argsort(dataset.lengths, kind="stable")
    chosen = by_length[np.linspace(0, 1499, settings.pairs).round().astype(int)]
    lengths = dataset.lengths[chosen]
    draft.metrics = {
        "weights": "random",
        "head": "none: the whole encoder, BERT with its pooler",
        "text": "STS-B dev" if texts else "length profile",
        "pairs": settings.pairs,
        "share_of_pairs": settings.pairs / 1500,
        "passes": settings.passes,
        "mean_tokens": float(lengths.mean()),
        "longest": int(lengths.max()),
        "size": {name: model_size(model) for name, model in encoders.items()},
    } | count_flops(lengths)
    pairs = [dataset.collate([dataset[i]]) for i in chosen]
    for count in thread_counts():
        with threads(count):
            functions = {name: partial(infer, model) for name, model in encoders.items()}
            alternate_over(functions, pairs[:: max(1, len(pairs) // WARMUP_PAIRS)])
            taken = alternate_over(functions, pairs, settings.passes)
            draft.extra[f"threads_{count}"] = summarise_passes(taken, lengths) | machine_rates()
    if texts:
        tokenizer = get_tokenizer()
        spent = alternate_over(
            {"tokenise": lambda pair: tokenizer(*pair, truncation=True)},
            [texts[i] for i in chosen],
            settings.passes,
        )
        draft.extra["tokenisation_seconds"] = float(np.median(spent["tokenise"].sum(1)))
    found = draft.extra[f"threads_{count}"]["bert_over_distilbert"]
    return ", ".join(f"{by}: BERT / DistilBERT {found[by]['ratio']:.2f}" for by in MAKERS)


def count_flops(lengths: np.ndarray) -> dict[str, dict[str, float]]:
    """Matrix-product FLOPs of one pass over the pairs, and their ratio."""
    flops = {
        f"{model}/{by}": forward_flops(CONFIGS[model], lengths) for model in MODELS for by in MAKERS
    }
    return {
        "flops": flops,
        "flops_ratio": {by: flops[f"bert/{by}"] / flops[f"distilbert/{by}"] for by in MAKERS},
    }


def summarise_passes(taken: dict[str, np.ndarray], lengths: np.ndarray) -> dict:
    """Seconds a pass, ratios, what a layer costs, and latency by length.

    taken: seconds [passes, pairs] by model. A pair's time is its median over the passes.
    """
    typical = {name: np.median(times, axis=0) for name, times in taken.items()}
    summary: dict = {
        "pass_seconds": {name: times.sum(1).round(4).tolist() for name, times in taken.items()},
        "median_pass_seconds": {
            name: round(float(np.median(times.sum(1))), 4) for name, times in taken.items()
        },
        "bert_over_distilbert": {
            by: ratio(typical[f"bert/{by}"], typical[f"distilbert/{by}"]) for by in MAKERS
        },
        "transformers_over_ours": {
            model: ratio(typical[f"{model}/transformers"], typical[f"{model}/ours"])
            for model in MODELS
        },
    }
    # Twelve layers against six: the difference is six layers, what is left is all the rest.
    bert, distilbert = (1e3 * typical[f"{m}/transformers"].mean() for m in MODELS)
    layer = (bert - distilbert) / 6
    summary["transformers_milliseconds"] = {
        "per_layer": round(layer, 4),
        "outside_layers": round(distilbert - 6 * layer, 4),
        "bert": round(bert, 4),
        "distilbert": round(distilbert, 4),
    }
    summary["latency_by_length"] = []
    for start in range(0, int(lengths.max()) + 1, BIN):
        inside = (start <= lengths) & (lengths < start + BIN)
        if inside.any():
            row = {"from": start, "to": start + BIN - 1, "pairs": int(inside.sum())}
            for name, times in taken.items():
                quantiles = 1e3 * np.quantile(times[:, inside], (0.05, 0.25, 0.5, 0.75, 0.95))
                row[name] = quantiles.round(3).tolist()
            summary["latency_by_length"].append(row)
    return summary


def same_weights(model: nn.Module) -> nn.Module:
    """Our classifier with the weights of a transformers one."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return DistilBERTForSequenceClassification.from_pretrained(folder, require_head=True)


def measure_inference(recipe: Recipe, draft: Draft) -> str:
    """Our DistilBERT against transformers' in fp32: by length, and over the dev pairs."""
    settings = recipe.speed
    theirs = build_classifier("distilbert", "transformers")
    ours = same_weights(theirs)
    dataset, draft.data, texts = stsb_pairs(settings.file_order_pairs)
    draft.metrics = {
        "weights": "random, the same on both sides",
        "head": "sequence classification, 2 labels",
        "text": "STS-B dev" if texts else "length profile",
        "pairs": len(dataset),
        "length_repeats": settings.length_repeats,
        "flops_by_length": {
            str(n): {
                by: forward_flops(
                    CONFIGS["distilbert"], [n], head="classification", trimmed=by == "ours"
                )
                for by in MAKERS
            }
            for n in settings.lengths
        },
    }
    worst = []
    for count in thread_counts():
        with threads(count):
            by_length = measure_lengths(ours, theirs, settings)
            draft.extra[f"threads_{count}"] = {"by_length": by_length} | machine_rates()
            worst.append(min(row["classifier"]["ratio"] for row in by_length))
    draft.extra["file_order"], draft.metrics["padding"], error = measure_file_order(
        ours, theirs, dataset, settings
    )
    draft.extra["largest_logit_difference"] = error
    found = ", ".join(
        f"{draft.extra['file_order'][f'padded_{size}_over_ours']['ratio']:.2f}"
        for size in PADDED_BATCHES
    )
    return f"transformers / ours by length at least {min(worst):.2f}; padded batches {found}"


def measure_lengths(ours: nn.Module, theirs: nn.Module, settings: SpeedSettings) -> list[dict]:
    """Median latency and ratio at each length, one sequence without padding."""

    rows = []
    generator = torch.Generator().manual_seed(0)
    for length in settings.lengths:
        ids = torch.randint(1000, 30000, (1, length), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        taken = alternate(
            {
                "ours": partial(classify, ours, batch),
                "transformers": partial(classify, theirs, batch),
                "ours_encoder": partial(infer, ours.encoder, batch),
                "transformers_encoder": partial(infer, theirs.distilbert, batch),
            },
            settings.length_repeats,
            warmup=3,
        )
        row: dict = {"length": length}
        for name, values in taken.items():
            row[f"{name}_milliseconds"] = round(1e3 * float(np.median(values)), 3)
        row["classifier"] = median_ratio(taken["transformers"], taken["ours"])
        row["encoder"] = median_ratio(taken["transformers_encoder"], taken["ours_encoder"])
        rows.append(row)
    return rows


def median_ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Median of the ratios of neighbouring calls, with their quartiles."""
    low, middle, high = np.quantile(numerator / denominator, (0.25, 0.5, 0.75))
    return {"ratio": round(middle, 4), "quartile_1": round(low, 4), "quartile_3": round(high, 4)}


def measure_file_order(
    ours: nn.Module, theirs: nn.Module, dataset: ClassificationDataset, settings: SpeedSettings
) -> tuple[dict, dict, float]:
    """A pass over the pairs: our length buckets against padded batches in file order."""

    def padded(size: int) -> np.ndarray:
        logits = []
        for start in range(0, len(dataset), size):
            items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            logits.append(classify(theirs, dataset.collate(items)))
        return torch.cat(logits).numpy()

    functions = {"ours": partial(predict_logits, ours, dataset)}
    functions |= {f"padded_{size}": partial(padded, size) for size in PADDED_BATCHES}
    error = float(np.abs(functions["ours"]() - functions[f"padded_{PADDED_BATCHES[0]}"]()).max())
    taken = alternate(functions, settings.passes, warmup=0)
    found: dict = {f"{name}_seconds": values.round(4).tolist() for name, values in taken.items()}
    padding = {"real_tokens": int(dataset.lengths.sum())}
    for size in PADDED_BATCHES:
        name = f"padded_{size}"
        found[f"{name}_over_ours"] = median_ratio(taken[name], taken["ours"])
        starts = range(0, len(dataset), size)
        widths = [dataset.lengths[i : i + size] for i in starts]
        padding[f"{name}_tokens"] = int(sum(part.max() * len(part) for part in widths))
    return found, padding, error


class _Stopwatch(TrainerCallback):
    """Time from the first training step to the last, without the Trainer's own set-up."""

    def on_train_begin(self, *_, **__) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_, **__) -> None:
        self.seconds = time.perf_counter() - self.started


def train_with_trainer(
    model: nn.Module, rows: list[dict], settings: TrainSettings, seed: int, **arguments
) -> float:
    """Fine-tune with transformers' Trainer, batch 32, dynamic padding; seconds of the steps."""
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=32,
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
            data_collator=DataCollatorWithPadding(get_tokenizer()),
            callbacks=[watch],
        ).train()
    return watch.seconds


def train_with_ours(
    model: nn.Module, rows: ClassificationDataset, settings: TrainSettings, seed: int, **changes
) -> float:
    """Fine-tune with our loop; seconds of the steps."""
    settings = settings.model_copy(update={"epochs": 1.0, **changes})
    sampler = LengthBatchSampler(
        rows.lengths, settings.batch_size, settings.batch_tokens, seed=seed
    )
    result = train(model, create_dataloader(rows, sampler), CLASSIFICATION, settings, seed=seed)
    return result.seconds


def measure_training(recipe: Recipe, draft: Draft) -> str:
    """One epoch of SST-2 rows with MiniLM: our loop against transformers' Trainer."""
    settings, task, tokenizer = recipe.training_speed, get_task("sst2"), get_tokenizer()
    finetune = recipe.finetune_for(task.name)
    source, table, used = load_task_split(task, task.train_split, tokenizer, finetune.max_length)
    dev, dev_table, dev_used = load_task_split(task, "validation", tokenizer, finetune.max_length)
    draft.data = [used, dev_used]
    chosen = np.random.default_rng(0).permutation(len(source))[: settings.examples]
    texts = [table["sentence"][int(i)] for i in chosen]
    labels = [table["label"][int(i)] for i in chosen]
    draft.extra["tokenisation_seconds"] = seconds(lambda: tokenizer(texts, truncation=True))
    dataset = ClassificationDataset(texts, labels, tokenizer, finetune.max_length)
    rows = [{**item, "attention_mask": [1] * len(item["input_ids"])} for item in dataset]
    torch.manual_seed(0)
    initial = {
        "ours": DistilBERTForSequenceClassification.from_pretrained("minilm", num_labels=2),
        "trainer": AutoModelForSequenceClassification.from_pretrained(
            resolve_checkpoint("minilm"), num_labels=2
        ),
    }
    grouped = {"bf16": True, "train_sampling_strategy": "group_by_length"}
    ours = partial(train_with_ours, rows=dataset, settings=finetune)
    trainer = partial(train_with_trainer, rows=rows, settings=finetune)
    candidates = {
        "ours": ours,
        "ours_batch_32": partial(ours, batch_size=32, batch_tokens=None),
        "trainer_fp32": trainer,
        "trainer_bf16": partial(trainer, bf16=True),
        "trainer_bf16_grouped": partial(trainer, **grouped),
    }
    taken, correct = ({name: [] for name in candidates} for _ in range(2))
    references = np.asarray(dev_table["label"][:])
    for turn in range(settings.rounds):
        for name in rotated(candidates, turn):
            model = copy.deepcopy(initial[name.split("_")[0]])
            taken[name].append(candidates[name](model, seed=turn))
            predictions = predict_logits(model.eval(), dev).argmax(1)
            correct[name].append(int((predictions == references).sum()))
    draft.metrics, draft.extra = summarise_training(
        taken, correct, dataset, len(dev), draft.extra | machine_rates()
    )
    speedups = draft.extra["speedup_of_ours"]
    return "ours against " + ", ".join(f"{n} {s['ratio']:.2f}" for n, s in speedups.items())


def summarise_training(
    taken: dict[str, list[float]],
    correct: dict[str, list[int]],
    dataset: ClassificationDataset,
    dev_rows: int,
    extra: dict,
) -> tuple[dict, dict]:
    """Metrics (accuracy by candidate) and measured figures (times, rates, ratios)."""
    metrics = {
        "examples": len(dataset),
        "real_tokens": int(dataset.lengths.sum()),
        "dev_accuracy": {},
    }
    for name, hits in correct.items():
        total = dev_rows * len(hits)
        # Runs share the dev set: the interval is that of one run at the mean accuracy.
        interval = wilson_interval(round(sum(hits) / len(hits)), dev_rows)
        metrics["dev_accuracy"][name] = {
            "each": [hit / dev_rows for hit in hits],
            "mean": sum(hits) / total,
            "low": interval["low"],
            "high": interval["high"],
        }
    times = {name: np.array(values) for name, values in taken.items()}
    extra["seconds"] = {name: values.round(3).tolist() for name, values in times.items()}
    extra["examples_per_second"] = {
        name: round(float(len(dataset) / np.median(values)), 1) for name, values in times.items()
    }
    extra["speedup_of_ours"] = {
        name: median_ratio(values, times["ours"])
        for name, values in times.items()
        if name != "ours"
    }
    return metrics, extra


OPTIONAL = ("training_speed", "question_answering_speed")
STAGES = {
    "size_speed": measure_size_speed,
    "inference_speed": measure_inference,
    "training_speed": measure_training,
    "question_answering_speed": question_answering_speed.measure,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="quick", help="name or file (default: quick)")
    parser.add_argument("--stage", choices=list(STAGES), help="default: all of the recipe's")
    return parser.parse_args()


@entry_point
def main() -> None:
    arguments = parse_arguments()
    recipe = load_recipe(arguments.recipe)
    stages = [name for name in STAGES if name not in OPTIONAL or getattr(recipe, name)]
    if arguments.stage and arguments.stage not in stages:
        raise UserError(
            f"recipe {recipe.name} has no {arguments.stage}; add it, or use the recipe study"
        )
    for stage in [arguments.stage] if arguments.stage else stages:
        cell = benchmark_cell(recipe, stage)
        torch.manual_seed(0)
        with recording(cell.record, **cell.provenance) as draft:
            summary = STAGES[stage](recipe, draft)
        print(f"{cell.name}: {summary}; record {cell.record.name}")


if __name__ == "__main__":
    main()
