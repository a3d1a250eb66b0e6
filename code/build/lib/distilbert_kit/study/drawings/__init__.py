"""The figures of notebooks, report and poster, by subject."""
