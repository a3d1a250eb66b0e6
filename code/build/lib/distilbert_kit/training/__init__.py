"""Objectives, THE training loop, and what each kind of training needs around it."""
