"""DistilBERT and its teacher, distillation, and a reproduction study of arXiv 1910.01108.

The public names below are loaded when they are first used: importing the kit takes no time and
no torch.
"""

import importlib
import os

# Nothing is told to anybody: these libraries report by default, and read this when imported.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

_PUBLIC = {
    "models.config": ("ModelConfig", "create_model_config"),
    "models.model": (
        "DistilBERTModel",
        "DistilBERTForMaskedLM",
        "DistilBERTForSequenceClassification",
        "DistilBERTForQuestionAnswering",
        "count_parameters",
    ),
    "models.checkpoints": ("get_tokenizer",),
    "models.initialisation": ("choose_layers", "extract_student"),
    "data.batches": (
        "ClassificationDataset",
        "MLMDataset",
        "create_classification_dataloader",
        "create_mlm_dataloader",
    ),
    "data.grammar": ("build_sentiment",),
    "losses": ("compute_classification_loss", "compute_mlm_loss"),
    "metrics": ("compute_confusion_matrix", "compute_precision_recall_f1"),
    "settings": ("LossWeights", "SoftTargets", "TrainSettings"),
    "training.objectives": ("triple_objective",),
    "training.classification": (
        "CLASSIFICATION",
        "classification_objective",
        "evaluate_classification_metrics",
    ),
    "training.distillation": ("compute_mlm_loader_loss",),
    "training.loop": ("train",),
    "serve.prediction": ("load_predictor",),
}
_ROOM = {name: room for room, names in _PUBLIC.items() for name in names}
__all__ = sorted(_ROOM)


def __getattr__(name: str):
    if name not in _ROOM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOM[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
