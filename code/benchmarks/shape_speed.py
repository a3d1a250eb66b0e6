"""Fewer layers against less width, at one number of parameters: the paper's section 3.

DistilBERT-base halves the layers of BERT-base. The other encoder keeps all twelve and is as much
narrower as it takes to have as many parameters, with heads of 64 as BERT's.
"""

from dataclasses import replace

from distilbert_kit.models.config import ModelConfig
from distilbert_kit.study.measure import forward_flops, model_size
from distilbert_kit.study.recipes import Recipe
from distilbert_kit.study.records import Draft

from .shared import CONFIGS, time_encoders


def narrowed(config: ModelConfig) -> ModelConfig:
    """An encoder of three quarters of the width and the heads, with the layers of BERT-base."""
    sizes = ("hidden_size", "intermediate_size", "num_heads")
    narrow = {name: getattr(config, name) * 3 // 4 for name in sizes}
    return replace(config, num_layers=CONFIGS["bert"].num_layers, **narrow)


def measure(recipe: Recipe, draft: Draft) -> str:
    """Passes over STS-B dev pairs one by one, both shapes in turn."""
    shapes = {"narrow": narrowed(CONFIGS["distilbert"]), "shallow": CONFIGS["distilbert"]}
    timed = time_encoders(shapes, recipe.shape_speed, draft)
    draft.metrics["shapes"] = {
        name: {
            "layers": config.num_layers,
            "width": config.hidden_size,
            "parameters": model_size(timed.encoders[f"{name}/ours"])["parameters"],
            "flops": forward_flops(config, timed.lengths),
        }
        for name, config in shapes.items()
    }
    return timed.ratios
