"""DistilBERT and its teacher, distillation, and a reproduction study of arXiv 1910.01108.

The public names below are loaded when they are first used: importing the kit takes no time and
no torch.
"""

import ast
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

# Nothing is told to anybody: these libraries report by default, and read this when imported.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

# The one list of the public names: type checkers read it as it is, `_ROOM` below as text.
if TYPE_CHECKING:
    from .data.batches import ClassificationDataset as ClassificationDataset
    from .data.batches import MLMDataset as MLMDataset
    from .data.batches import create_classification_dataloader as create_classification_dataloader
    from .data.batches import create_mlm_dataloader as create_mlm_dataloader
    from .data.grammar import build_sentiment as build_sentiment
    from .losses import compute_classification_loss as compute_classification_loss
    from .losses import compute_mlm_loss as compute_mlm_loss
    from .metrics import compute_confusion_matrix as compute_confusion_matrix
    from .metrics import compute_precision_recall_f1 as compute_precision_recall_f1
    from .models.checkpoints import get_tokenizer as get_tokenizer
    from .models.config import ModelConfig as ModelConfig
    from .models.config import create_model_config as create_model_config
    from .models.initialisation import choose_layers as choose_layers
    from .models.initialisation import extract_student as extract_student
    from .models.model import DistilBERTForMaskedLM as DistilBERTForMaskedLM
    from .models.model import DistilBERTForQuestionAnswering as DistilBERTForQuestionAnswering
    from .models.model import (
        DistilBERTForSequenceClassification as DistilBERTForSequenceClassification,
    )
    from .models.model import DistilBERTModel as DistilBERTModel
    from .models.model import count_parameters as count_parameters
    from .serve.prediction import load_predictor as load_predictor
    from .settings import LossWeights as LossWeights
    from .settings import SoftTargets as SoftTargets
    from .settings import TrainSettings as TrainSettings
    from .training.classification import CLASSIFICATION as CLASSIFICATION
    from .training.classification import classification_objective as classification_objective
    from .training.classification import (
        evaluate_classification_metrics as evaluate_classification_metrics,
    )
    from .training.distillation import compute_mlm_loader_loss as compute_mlm_loader_loss
    from .training.loop import train as train
    from .training.objectives import triple_objective as triple_objective
else:
    _ROOM = {
        alias.name: node.module
        for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    __all__ = sorted(_ROOM)

    def __getattr__(name: str):
        if name not in _ROOM:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_ROOM[name]}", __name__), name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
