"""The paper's Table 3: parameters, bytes, FLOPs and a pass over the STS-B dev pairs one by one.

Table 3 is about the encoders, so they are timed whole; our classifiers compute only the first
position of the last block, which would favour the shallower model.
"""

from functools import partial

import numpy as np
from scipy import stats
from torch import nn
from transformers import AutoModel

from distilbert_kit.data.batches import evenly_by_length
from distilbert_kit.models.checkpoints import get_tokenizer
from distilbert_kit.models.hub_layout import hub_config
from distilbert_kit.models.model import DistilBERTModel
from distilbert_kit.study.evidence.speed import ratio_of_totals
from distilbert_kit.study.measure import alternate_over, forward_flops, model_size, threads
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.settings import STSB_PAIRS

from .shared import CONFIGS, MAKERS, MODELS, infer, machine_rates, stsb_pairs, thread_counts

BIN = 8  # tokens: width of the length bins of the latency figure
WARMUP_PAIRS = 20


def build_encoder(model: str, maker: str) -> nn.Module:
    """A paper-size encoder, BERT's with its pooler, with random weights, ready for inference."""
    ours = DistilBERTModel(CONFIGS[model]).eval()
    return ours if maker == "ours" else AutoModel.from_config(hub_config(ours)).eval()


def measure(recipe: Recipe, draft: Draft) -> str:
    """Table 3: sizes, FLOPs and a pass over the dev pairs one by one."""
    settings = recipe.speed
    encoders = {f"{m}/{by}": build_encoder(m, by) for m in MODELS for by in MAKERS}
    dataset, draft.data, texts = stsb_pairs(STSB_PAIRS)
    chosen = evenly_by_length(dataset.lengths, settings.pairs)
    lengths = dataset.lengths[chosen]
    draft.metrics = {
        "weights": "random",
        "head": "none: the whole encoder, BERT with its pooler",
        "text": "STS-B dev" if texts else "length profile",
        "pairs": settings.pairs,
        "share_of_pairs": settings.pairs / STSB_PAIRS,
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
    found = draft.extra[f"threads_{thread_counts()[-1]}"]["pass_seconds"]
    ratios = {by: ratio_of_totals(*(found[f"{m}/{by}"] for m in MODELS)) for by in MAKERS}
    return ", ".join(f"{by}: BERT / DistilBERT {ratios[by]['ratio']:.2f}" for by in MAKERS)


def count_flops(lengths: np.ndarray) -> dict[str, dict[str, float]]:
    """Matrix-product FLOPs of one pass over the pairs, and their ratio."""
    flops = {
        f"{model}/{by}": forward_flops(CONFIGS[model], lengths) for model in MODELS for by in MAKERS
    }
    return {
        "flops": flops,
        "flops_ratio": {by: flops[f"bert/{by}"] / flops[f"distilbert/{by}"] for by in MAKERS},
    }


def total_ratio(numerator: np.ndarray, denominator: np.ndarray, axis: int = -1) -> np.ndarray:
    """Total over total, of the pairs along `axis`."""
    return numerator.sum(axis) / denominator.sum(axis)


def summarise_passes(taken: dict[str, np.ndarray], lengths: np.ndarray) -> dict:
    """Seconds a pass, what a layer costs, and latency by length.

    taken: seconds [passes, pairs] by model. `over_pairs` is the bootstrap interval of the ratio of
    totals, over the pairs, whose times in all passes are summed.
    """
    summary: dict = {
        "pass_seconds": {name: times.sum(1).round(4).tolist() for name, times in taken.items()},
        "over_pairs": {},
    }
    for by in MAKERS:
        seconds = tuple(taken[f"{model}/{by}"].sum(0) for model in MODELS)
        interval = stats.bootstrap(
            seconds, total_ratio, paired=True, n_resamples=1000, method="percentile", rng=0
        ).confidence_interval
        ends = map(float, interval)
        summary["over_pairs"][by] = {end: round(at, 4) for end, at in zip(("low", "high"), ends)}
    # Twelve layers against six: the difference is six layers, what is left is all the rest.
    bert, distilbert = (1e3 * taken[f"{m}/transformers"].mean() for m in MODELS)
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
