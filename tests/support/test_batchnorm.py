"""Fresh BatchNorm statistics: of what runs, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_prune.support.batchnorm import fresh_statistics


def norms() -> list[nn.BatchNorm1d]:
    made = [nn.BatchNorm1d(3, momentum=0.3) for _ in range(2)]
    for norm in made:
        norm(torch.randn(8, 3))
    return made


def test_norms_that_nothing_passes_through_keep_their_statistics() -> None:
    used, idle = norms()
    before, x = {k: v.clone() for k, v in idle.state_dict().items()}, torch.randn(16, 3)
    with fresh_statistics([used, idle]):
        used(x)
    torch.testing.assert_close(used.running_mean, x.mean(0))
    assert all(torch.equal(v, before[k]) for k, v in idle.state_dict().items())
    assert used.momentum == idle.momentum == 0.3


def test_an_exception_puts_all_back() -> None:
    made = norms()
    before = [norm.running_mean.clone() for norm in made if norm.running_mean is not None]
    with pytest.raises(RuntimeError, match="running_mean"), fresh_statistics(made):
        made[0](torch.randn(16, 4))
    for norm, mean in zip(made, before, strict=True):
        assert torch.equal(norm.running_mean, mean)  # type: ignore[arg-type]
