"""Fewer layers against less width, at one number of parameters: the paper's section 3.

DistilBERT-base halves the layers of BERT-base. The other encoder keeps all twelve and is as much
narrower as it takes to have as many parameters, with heads of 64 as BERT's.
"""

from distilbert_kit.data.batches import evenly_by_length
from distilbert_kit.models.config import create_model_config
from distilbert_kit.study.evidence.speed import ratio_of_totals
from distilbert_kit.study.measure import forward_flops, model_size
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft
from distilbert_kit.study.settings import STSB_PAIRS

from .shared import (
    CONFIGS,
    MAKERS,
    build_encoder,
    interval_over_pairs,
    machine_rates,
    passes_by_threads,
    stsb_pairs,
    thread_counts,
)

NARROW = {"num_layers": 12, "hidden_size": 576, "intermediate_size": 2304, "num_heads": 9}
SHAPES = {
    "narrow": create_model_config("distilbert-base-uncased", **NARROW),
    "shallow": CONFIGS["distilbert"],
}


def measure(recipe: Recipe, draft: Draft) -> str:
    """Passes over STS-B dev pairs one by one, both shapes in turn."""
    settings = recipe.shape_speed
    encoders = {f"{name}/{by}": build_encoder(SHAPES[name], by) for name in SHAPES for by in MAKERS}
    dataset, draft.data, texts = stsb_pairs(STSB_PAIRS)
    chosen = evenly_by_length(dataset.lengths, settings.pairs)
    draft.metrics = {
        "weights": "random",
        "text": "STS-B dev" if texts else "length profile",
        "pairs": settings.pairs,
        "passes": settings.passes,
        "mean_tokens": float(dataset.lengths[chosen].mean()),
        "shapes": {
            name: {
                "layers": config.num_layers,
                "width": config.hidden_size,
                "parameters": model_size(encoders[f"{name}/ours"])["parameters"],
                "flops": forward_flops(config, dataset.lengths[chosen]),
            }
            for name, config in SHAPES.items()
        },
    }
    pairs = [dataset.collate([dataset[i]]) for i in chosen]
    for count, taken in passes_by_threads(encoders, pairs, settings.passes):
        draft.extra[f"threads_{count}"] = {
            "pass_seconds": {name: each.sum(1).round(4).tolist() for name, each in taken.items()},
            "over_pairs": {
                by: interval_over_pairs(*(taken[f"{name}/{by}"] for name in SHAPES))
                for by in MAKERS
            },
        } | machine_rates()
    found = draft.extra[f"threads_{thread_counts()[-1]}"]["pass_seconds"]
    ratios = {by: ratio_of_totals(*(found[f"{name}/{by}"] for name in SHAPES)) for by in MAKERS}
    return ", ".join(f"{by}: narrow / shallow {ratios[by]['ratio']:.2f}" for by in MAKERS)
