"""Accuracy under attack and vulnerability, on networks where both can be worked out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import PGD, RobustAccuracy, Vulnerability
from lightning_prune.metrics.robust import vulnerability


class Sign(nn.Module):
    """Logits (−w·x, w·x)."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.read = nn.Linear(len(weight), 1, bias=False)
        self.act, self.head = nn.Identity(), nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.read.weight.copy_(torch.tensor([weight]))
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.read(x)))


X = torch.tensor([[0.05, 0.0], [0.5, 0.0], [-0.05, 0.0], [-0.5, 0.0]])
Y = torch.tensor([1, 1, 0, 0])
ATTACK = PGD(0.1, 0.05, 4)


def test_white_box_accuracy_is_of_those_beyond_the_reach_of_the_attack() -> None:
    net = Sign([1.0, 0.0])
    for attack, wanted in ((None, 1.0), (ATTACK, 0.5)):
        metric = RobustAccuracy(attack)
        metric.update(net, X, Y)
        assert float(metric.compute()) == wanted
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_black_box_examples_come_from_another_network() -> None:
    other = Sign([0.0, 1.0])  # moves the second input, which the first network does not read
    metric = RobustAccuracy(ATTACK, source=other)
    metric.update(Sign([1.0, 0.0]), X, Y)
    assert float(metric.compute()) == 1.0
    metric.reset()
    metric.update(Sign([1.0, 1.0]), X, Y)  # w·x ± 0.1
    metric.update(Sign([1.0, 1.0]), 10 * X, Y)
    assert float(metric.compute()) == 0.75
    assert not list(metric.parameters())  # the source is no part of the metric
    assert "source" not in metric.state_dict()


def test_vulnerability_is_how_far_what_layers_read_moves() -> None:
    metric = Vulnerability(ATTACK)
    metric.update(Sign([2.0, 0.0]), X, Y)
    assert float(metric.compute()) == pytest.approx(0.2)  # only the head reads features
    metric = Vulnerability(ATTACK, layers=["read", "head"])
    net = Sign([2.0, 0.0])
    with torch.inference_mode():  # as in validation
        metric.update(net, X.clone(), Y.clone())
    assert float(metric.compute()) == pytest.approx((0.05 + 0.2) / 2)  # the second input has no gradient


def test_features_that_do_not_belong_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"head got \(2, 3\) and \(4, 3\)"):
        vulnerability({"head": torch.zeros(2, 3)}, {"head": torch.zeros(4, 3)}, {})
    half = {"head": lambda x: 0.5 * x}
    found = vulnerability({"head": torch.zeros(2, 3)}, {"head": torch.ones(2, 3)}, half)
    assert float(found) == 0.5
    assert float(vulnerability({}, {}, {})) == 0.0
