"""What several stages share: paper-size models, the STS-B pairs, what this machine can measure."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import yaml
from scipy import stats
from torch import Tensor, nn
from transformers import AutoModel

from distilbert_kit.data.batches import ClassificationDataset, evenly_by_length
from distilbert_kit.data.sources import DataUsed
from distilbert_kit.data.tables import load_table
from distilbert_kit.data.tasks import get_task
from distilbert_kit.machine import has_bf16_instructions
from distilbert_kit.models.config import ModelConfig, create_model_config
from distilbert_kit.models.hub_layout import hub_config
from distilbert_kit.models.model import DistilBERTModel
from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.paths import DATA, ROOT
from distilbert_kit.study.measure import alternate_over, matrix_product_rate, threads
from distilbert_kit.study.records import Draft
from distilbert_kit.study.settings import ENCODERS, STSB_PAIRS, ShapeSpeedSettings, SpeedSettings

MODELS = ("bert", "distilbert")
MAKERS = ("ours", "transformers")
CONFIGS = {model: create_model_config(preset) for model, preset in ENCODERS["paper"].items()}
LENGTHS = ROOT / "data" / "stsb_lengths.yaml"
WARMUP_PAIRS = 20
NO_BF16 = "not measured: no bf16 instructions"


def build_encoder(config: ModelConfig, maker: str) -> nn.Module:
    """An encoder, BERT's with its pooler, with random weights, ready for inference."""
    ours = DistilBERTModel(config).eval()
    return ours if maker == "ours" else AutoModel.from_config(hub_config(ours)).eval()


def stsb_pairs(
    count: int,
) -> tuple[ClassificationDataset, list[DataUsed], list[tuple[str, str]] | None]:
    """The first `count` STS-B dev pairs in file order, what was read, and the pairs as text.

    Without the data: random tokens of the lengths that those pairs have.
    """
    tokenizer, task = get_tokenizer(), get_task("stsb")
    if (DATA / task.dataset / "validation.parquet").is_file():
        columns = (*task.text_columns, task.label_column)
        table, used = load_table(task.dataset, "validation", columns)
        texts = list(zip(*(table[column][:count] for column in task.text_columns), strict=True))
        return ClassificationDataset(texts, None, tokenizer), [used], texts
    lengths = np.array(yaml.safe_load(LENGTHS.read_text())[:count])
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


def median_ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Median of the ratios of neighbouring calls, with their quartiles."""
    low, middle, high = np.quantile(numerator / denominator, (0.25, 0.5, 0.75))
    return {"ratio": round(middle, 4), "quartile_1": round(low, 4), "quartile_3": round(high, 4)}


def total_ratio(numerator: np.ndarray, denominator: np.ndarray, axis: int = -1) -> np.ndarray:
    """Total over total, of the pairs along `axis`."""
    return numerator.sum(axis) / denominator.sum(axis)


def interval_over_pairs(slower: np.ndarray, faster: np.ndarray) -> dict[str, float]:
    """Bootstrap interval (95 %) of the ratio of totals, over the pairs.

    Both: seconds [passes, pairs]. The times of a pair in all passes are summed.
    """
    seconds = (slower.sum(0), faster.sum(0))
    interval = stats.bootstrap(
        seconds, total_ratio, paired=True, n_resamples=1000, method="percentile", rng=0
    ).confidence_interval
    return {"low": round(float(interval.low), 4), "high": round(float(interval.high), 4)}


def thread_counts() -> list[int]:
    return sorted({1, torch.get_num_threads()})


def pass_totals(taken: dict[str, np.ndarray], slower: str, faster: str) -> dict:
    """Seconds of each pass, and by implementation the interval over pairs of the ratio of totals.

    taken: seconds [passes, pairs] by "model/maker", of the two models.
    """
    return {
        "pass_seconds": {name: times.sum(1).round(4).tolist() for name, times in taken.items()},
        "over_pairs": {
            by: interval_over_pairs(taken[f"{slower}/{by}"], taken[f"{faster}/{by}"])
            for by in MAKERS
        },
    }


@dataclass(frozen=True)
class Timed:
    """What `time_encoders` measured: `seconds` [passes, pairs] by thread count and encoder.

    `lengths` [pairs] in tokens; `texts` are the pairs, None without the data; `ratios` in words:
    those of the totals, with the most threads.
    """

    encoders: dict[str, nn.Module]
    lengths: np.ndarray
    texts: list[tuple[str, str]] | None
    seconds: dict[int, dict[str, np.ndarray]]
    ratios: str


def time_encoders(
    configs: dict[str, ModelConfig], settings: SpeedSettings | ShapeSpeedSettings, draft: Draft
) -> Timed:
    """Two encoders, the slower one first, in turn over STS-B dev pairs, one pair at a time.

    The draft gets the data, the conditions, and for each thread count `pass_totals` and the
    machine's own rates.
    """
    slower, faster = configs
    encoders = {
        f"{name}/{by}": build_encoder(configs[name], by) for name in configs for by in MAKERS
    }
    dataset, draft.data, texts = stsb_pairs(STSB_PAIRS)
    chosen = evenly_by_length(dataset.lengths, settings.pairs)
    lengths = dataset.lengths[chosen]
    draft.metrics = {
        "weights": "random",
        "text": "STS-B dev" if texts else "length profile",
        "pairs": settings.pairs,
        "passes": settings.passes,
        "mean_tokens": float(lengths.mean()),
    }
    pairs = [dataset.collate([dataset[i]]) for i in chosen]
    functions = {name: partial(infer, encoder) for name, encoder in encoders.items()}
    seconds = {}
    for count in thread_counts():
        with threads(count):
            alternate_over(functions, pairs[:: max(1, len(pairs) // WARMUP_PAIRS)])
            seconds[count] = alternate_over(functions, pairs, settings.passes)
            passes = pass_totals(seconds[count], slower, faster)
            draft.extra[f"threads_{count}"] = passes | machine_rates()
    last = {name: taken.sum() for name, taken in seconds[max(seconds)].items()}
    ratios = ", ".join(
        f"{by}: {slower} / {faster} {last[f'{slower}/{by}'] / last[f'{faster}/{by}']:.2f}"
        for by in MAKERS
    )
    return Timed(encoders, lengths, texts and [texts[i] for i in chosen], seconds, ratios)


def precisions() -> tuple[str, ...]:
    """What is measured on this CPU, the best one last.

    Where bf16 is only emulated it is left out: a step of a second would take minutes, and nobody
    would run it so.
    """
    return ("fp32", "bf16") if has_bf16_instructions() else ("fp32",)


def machine_rates() -> dict[str, float | str | None]:
    """The machine's own matrix products with the threads now set, GFLOP/s."""
    rates: dict = {"fp32_gflops": round(matrix_product_rate(torch.float32), 1)}
    if "bf16" not in precisions():
        return rates | {"bf16_gflops": None, "bf16": NO_BF16}
    return rates | {"bf16_gflops": round(matrix_product_rate(torch.bfloat16), 1)}
