"""Every test starts from the same random state, whichever ran before it."""

import os
import signal

import pytest

# Tests run side by side, and theirs are tiny models: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Shells start background jobs deaf to Ctrl-C, and programs under test would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One text alone and the same text in a batch, or the same model by another library, pass through
# products of other shapes, which the CPU's library sums in another order (on some processors
# only). A score is equal up to this, relative and absolute; labels, spans and order are equal.
ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
