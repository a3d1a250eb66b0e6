"""Every test starts from the same random state, whichever ran before it."""

import os

import pytest

# Tests run side by side, and theirs are tiny models: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
