"""The public names of the kit: type checkers read them here, and __init__.py too."""

from .data.batches import (
    ClassificationDataset as ClassificationDataset,
    MLMDataset as MLMDataset,
    create_classification_dataloader as create_classification_dataloader,
    create_mlm_dataloader as create_mlm_dataloader,
)
from .data.grammar import build_sentiment as build_sentiment
from .losses import (
    compute_classification_loss as compute_classification_loss,
    compute_mlm_loss as compute_mlm_loss,
)
from .metrics import (
    compute_confusion_matrix as compute_confusion_matrix,
    compute_precision_recall_f1 as compute_precision_recall_f1,
)
from .models.config import ModelConfig as ModelConfig, create_model_config as create_model_config
from .models.initialisation import (
    choose_layers as choose_layers,
    extract_student as extract_student,
)
from .models.model import (
    DistilBERTForMaskedLM as DistilBERTForMaskedLM,
    DistilBERTForQuestionAnswering as DistilBERTForQuestionAnswering,
    DistilBERTForSequenceClassification as DistilBERTForSequenceClassification,
    DistilBERTModel as DistilBERTModel,
    count_parameters as count_parameters,
)
from .models.tokenizers import get_tokenizer as get_tokenizer
from .serve.prediction import load_predictor as load_predictor
from .settings import (
    LossWeights as LossWeights,
    SoftTargets as SoftTargets,
    TrainSettings as TrainSettings,
)
from .training.classification import (
    CLASSIFICATION as CLASSIFICATION,
    classification_objective as classification_objective,
    evaluate_classification_metrics as evaluate_classification_metrics,
    predict_logits as predict_logits,
)
from .training.distillation import compute_mlm_loader_loss as compute_mlm_loader_loss
from .training.loop import train as train
from .training.objectives import triple_objective as triple_objective
