"""The paper's Table 3: parameters, bytes, FLOPs and a pass over the STS-B dev pairs one by one.

Table 3 is about the encoders, so they are timed whole; our classifiers compute only the first
position of the last block, which would favour the shallower model.
"""

import numpy as np

from distilbert_kit.models.tokenizers import get_tokenizer
from distilbert_kit.study.measure import alternate_over, forward_flops, model_size
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.settings import STSB_PAIRS

from .shared import CONFIGS, MAKERS, MODELS, time_encoders

BIN = 8  # tokens: width of the length bins of the latency figure


def measure(recipe: Recipe, draft: Draft) -> str:
    """Table 3: sizes, FLOPs and a pass over the dev pairs one by one."""
    settings = recipe.speed
    timed = time_encoders({model: CONFIGS[model] for model in MODELS}, settings, draft)
    draft.metrics |= {
        "head": "none: the whole encoder, BERT with its pooler",
        "share_of_pairs": settings.pairs / STSB_PAIRS,
        "longest": int(timed.lengths.max()),
        "size": {name: model_size(model) for name, model in timed.encoders.items()},
    } | count_flops(timed.lengths)
    for count, taken in timed.seconds.items():
        draft.extra[f"threads_{count}"] |= summarise_passes(taken, timed.lengths)
    if timed.texts:
        tokenizer = get_tokenizer()
        spent = alternate_over(
            {"tokenise": lambda pair: tokenizer(*pair, truncation=True)},
            timed.texts,
            settings.passes,
        )
        draft.extra["tokenisation_seconds"] = float(np.median(spent["tokenise"].sum(1)))
    return timed.ratios


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
    """What a layer costs, and latency by length.

    taken: seconds [passes, pairs] by model.
    """
    summary: dict = {}
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
