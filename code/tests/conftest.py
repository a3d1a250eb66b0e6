"""Every test starts from the same random state, whichever ran before it."""

import os
import signal

import pytest

# Tests run side by side, and theirs are tiny models: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# A job in the background, or under nohup, is deaf to these; programs under test would inherit it.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# One text alone and the same text in a batch, or the same model by another library, pass through
# products of other shapes, which the CPU's library sums in another order (on some processors
# only). A score is equal up to this, relative and absolute; labels, spans and order are equal.
ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
