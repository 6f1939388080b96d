"""The proof in float32, which lets nothing pass that float64 would not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.channels import prune_channels
from lightning_prune.channels.verify import compare
from lightning_prune.channels.verify.compare import Proof, check_plan
from tests.channels.models import Attention, Branches, Chain, randomise
from tests.channels.verify.wrong import broken


class Faint(nn.Module):
    """Branches of which next to nothing reaches the output, with biases of next to nothing in them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.scale = nn.ParameterList(1e-6 * (1 + torch.rand(width)) for _ in range(2))
        self.head = nn.Linear(width, 3)
        for layer in self.up:
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down, scale in zip(self.up, self.down, self.scale, strict=True):
            x = x + scale * down(up(x).relu())
        return self.head(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Chain, Branches, Attention, Faint])
def test_float32_lets_no_wrong_cut_pass_that_float64_would_not(
    kind: type[nn.Module], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = randomise(kind())
    x = torch.randn(6, 4) if kind is Faint else torch.randn(2, 3, 8, 8)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    plan = prune_channels(model, x, score="l1", ratio=0.4).plan
    plan.undo(model)
    model.load_state_dict(state)
    assert check_plan(model, plan, x, training=training).dtype == torch.float32
    wrong = broken(plan, training)
    passed = [p for p in wrong if check_plan(model, p, x, training=training).dtype == torch.float32]
    assert len(passed) < 0.1 * len(wrong)  # what reads a channel that is silent on this batch may be wrong
    monkeypatch.setattr(compare, "_by_layers", lambda *_: None)
    for other in passed:
        assert check_plan(model, other, x, training=training).equal


def test_the_worst_of_both_modes_is_told() -> None:
    float32, float64 = Proof(1e-6, 0.5, torch.float32, 1e-5), Proof(1e-15, 0.7, torch.float64, 1e-9)
    for first, second in ((float32, float64), (float64, float32)):
        assert first.and_training(second) == Proof(1e-6, 0.7, torch.float32, 1e-5, True)


def test_float64_tells_where_float32_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ROUNDING", -1.0)
    model = randomise(Chain())
    proof = prune_channels(model, torch.randn(2, 3, 8, 8), score="l1", ratio=0.4).proof
    assert proof is not None
    assert (proof.dtype, proof.tolerance) == (torch.float64, 1e-9)
