"""Text for masked-LM training: sources, preparation, shards of 16-bit token ids."""
