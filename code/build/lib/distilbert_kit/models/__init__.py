"""DistilBERT and its teacher: configuration, encoder and heads, initialisation, checkpoints."""
