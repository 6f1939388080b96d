"""Tensors that are made when they are asked for, and what the proof costs in memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.channels import prune_channels
from lightning_prune.channels.verify import compare
from lightning_prune.channels.verify.noise import without_zeros
from lightning_prune.channels.verify.runs import exact_dtypes
from lightning_prune.channels.verify.tensors import cast, reader, reading
from lightning_prune.plan.cut import Cut
from lightning_prune.plan.plan import PruningPlan
from tests.channels.models import Chain, random_scores, randomise
from tests.sweep.channels_cost import memory


class Writer(nn.Module):
    """Writes a buffer and reads it back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return self.layer(x) * self.seen


def test_a_model_reads_what_the_reader_makes_and_gets_its_own_back() -> None:
    model = Writer()
    before = dict(model.state_dict(keep_vars=True))
    x = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        with reading(model, reader(model, cast(torch.float64))):
            assert {p.dtype for p in model.parameters()} == {torch.float64}
            assert model.layer.bias is None
            found = model(x)
        torch.testing.assert_close(found, copy.deepcopy(model).double()(x))
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is before[name] for name in before)
    assert type(model._parameters) is dict
    assert float(model.seen) == 0


def test_what_is_switched_off_wakes_up_in_the_same_way_each_time() -> None:
    model = randomise(Chain())
    with torch.no_grad():
        model.features[0].weight[2] = 0
        model.features[1].weight[3] = 0
        model.features[3].bias.zero_()
    size = len(model.features[1].weight)
    going = Cut((size,), {0: tuple(range(1, size))})
    plan = PruningPlan({"features.1.weight": going, "features.1.bias": going})
    read = reader(model, without_zeros(model, plan))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for name in before:
        torch.testing.assert_close(read(name), read(name), rtol=0, atol=0)
        torch.testing.assert_close(model.state_dict()[name], before[name], rtol=0, atol=0)
    assert bool((read("features.0.weight")[2] != 0).all())
    torch.testing.assert_close(read("features.0.weight")[3], before["features.0.weight"][3])
    assert float(read("features.1.weight")[3]) == 1
    assert bool((read("features.3.bias") != 0).all())
    for name in ("features.1.weight", "features.1.bias"):  # the channel that is to go, and no other
        assert float(read(name)[0]) == 1
        torch.testing.assert_close(read(name)[1:3], before[name][1:3], rtol=0, atol=0)
    assert bool((read("features.1.running_mean") == before["features.1.running_mean"]).all())


def test_float64_unless_one_tensor_outweighs_the_model() -> None:
    with torch.device("meta"):
        assert exact_dtypes(Chain())[0] == torch.float64
        assert exact_dtypes(nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8))))[0] == torch.float64
        assert exact_dtypes(nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(3)))) == (None,)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_proof_and_surgery_take_less_memory_than_the_model() -> None:
    """In a process of its own: what earlier tests left to the allocator moves the peak by more than the model."""
    command = [sys.executable, "-m", "tests.channels.verify.test_tensors"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    growth, size = map(int, done.stdout.split())
    assert 0 < growth < size


def print_growth() -> None:
    """Prints how much the peak grows, and what the model takes, in MiB."""
    torch.set_num_threads(1)
    x = torch.randn(2, 3, 4, 4)
    prune_channels(randomise(Chain()), x, keep={"features.1": range(4)})  # what the first call loads does not count
    model = randomise(Chain((768,) * 9))
    size = sum(p.numel() * p.element_size() for p in model.parameters()) >> 20
    scores = random_scores(model)
    compare.ROUNDING = -1.0  # float32 does not do: both checks run
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    result = prune_channels(model, x, scores=scores, ratio=0.3)
    assert result.proof is not None
    assert result.proof.dtype == torch.float64
    print(memory("VmHWM") - before, size)


if __name__ == "__main__":
    print_growth()
