"""Settings for all tests."""

import logging

import pytest
import torch

# The networks here are small: a second thread costs more in waiting than it computes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _denormals_count():
    """Sessions of other runtimes may leave a thread that takes denormal numbers for zero."""
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _quiet_lightning():
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
