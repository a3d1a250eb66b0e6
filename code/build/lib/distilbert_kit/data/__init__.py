"""Tasks, data sets and batches."""
