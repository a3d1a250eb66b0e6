"""The stages of `code/benchmark.py`, a module each: `measure(recipe, draft)` returns a summary."""
