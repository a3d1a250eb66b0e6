"""Fewer layers against less width, at one number of parameters: the paper's section 3.

DistilBERT-base halves the layers of BERT-base. The other encoder keeps all twelve and is as much
narrower as it takes to have as many parameters, with heads of 64 as BERT's.
"""

from distilbert_kit.models.config import create_model_config
from distilbert_kit.study.measure import forward_flops, model_size
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft

from .shared import CONFIGS, time_encoders

NARROW = {"num_layers": 12, "hidden_size": 576, "intermediate_size": 2304, "num_heads": 9}
SHAPES = {
    "narrow": create_model_config("distilbert-base-uncased", **NARROW),
    "shallow": CONFIGS["distilbert"],
}


def measure(recipe: Recipe, draft: Draft) -> str:
    """Passes over STS-B dev pairs one by one, both shapes in turn."""
    timed = time_encoders(SHAPES, recipe.shape_speed, draft)
    draft.metrics["shapes"] = {
        name: {
            "layers": config.num_layers,
            "width": config.hidden_size,
            "parameters": model_size(timed.encoders[f"{name}/ours"])["parameters"],
            "flops": forward_flops(config, timed.lengths),
        }
        for name, config in SHAPES.items()
    }
    return timed.ratios
