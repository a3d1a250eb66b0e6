"""A complete classification run with the kit, in under a minute and without any download.

python code/examples/train_distilbert.py
"""

import torch

from distilbert_kit import (
    CLASSIFICATION,
    DistilBERTForSequenceClassification,
    TrainSettings,
    build_sentiment,
    count_parameters,
    create_classification_dataloader,
    evaluate_classification_metrics,
    get_tokenizer,
    train,
)


def main() -> None:
    torch.manual_seed(0)
    # A small pretrained encoder that comes with the requirements; "distilbert-base-uncased", a
    # folder, or create_model_config and random weights work the same way.
    model = DistilBERTForSequenceClassification.from_pretrained("minilm", num_labels=2)
    tokenizer = get_tokenizer("minilm")
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
    settings = TrainSettings(epochs=1, learning_rate=2e-4, batch_size=32, warmup_fraction=0.1)
    train(model, loaders["train"], CLASSIFICATION, settings, seed=0)
    # The sentences of the dev split are made of words that the training split never shows.
    metrics = evaluate_classification_metrics(model, loaders["validation"])
    print({name: round(value, 3) for name, value in metrics.items()})


if __name__ == "__main__":
    main()
