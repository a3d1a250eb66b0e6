"""A complete classification run with the kit, in under a minute and without any download.

python code/examples/train_distilbert.py
"""

import torch

from distilbert_kit.config import create_model_config
from distilbert_kit.data import create_classification_dataloader
from distilbert_kit.evaluation import evaluate_classification_metrics
from distilbert_kit.grammar import build_sentiment
from distilbert_kit.model import DistilBERTForSequenceClassification, count_parameters
from distilbert_kit.recipes import TrainSettings
from distilbert_kit.training import CLASSIFICATION, train
from distilbert_kit.weights import get_tokenizer


def main() -> None:
    torch.manual_seed(0)
    # A small DistilBERT from scratch; "distilbert-base-uncased (66M)" is the paper's size.
    config = create_model_config("DistilMiniLM-L3 (17M)", hidden_size=128, intermediate_size=512)
    model = DistilBERTForSequenceClassification(config, num_labels=2)
    tokenizer = get_tokenizer("distilbert-base-uncased")
    loaders = {}
    for split in ("train", "validation"):
        rows = build_sentiment(split)
        loaders[split] = create_classification_dataloader(
            [row["sentence"] for row in rows],
            [row["label"] for row in rows],
            tokenizer,
            batch_size=32,
            shuffle=split == "train",
        )
    print(f"{count_parameters(model):,} parameters")
    settings = TrainSettings(epochs=2, learning_rate=5e-4, batch_size=32, precision="fp32")
    train(model, loaders["train"], CLASSIFICATION, settings, seed=0)
    for split, loader in loaders.items():
        metrics = evaluate_classification_metrics(model, loader)
        print(split, {name: round(value, 3) for name, value in metrics.items()})


if __name__ == "__main__":
    main()
