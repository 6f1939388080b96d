"""What the first batch shows is refused there: a network that cannot be traced, a target that no choice can meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import FPGMCallback, MRTSCallback
from lightning_prune.callbacks.families.foreseen import Foreseen
from lightning_prune.channels import ChannelError, ChannelGraph
from lightning_prune.errors import PhaseError, TargetError, TraceError
from lightning_prune.support.modes import Arguments
from tests.toy import Toy, loaders, network, trainer


def fit(path: Path, callback: Any, module: Toy, epochs: int = 3) -> None:
    trainer(path, [callback], max_epochs=epochs, num_sanity_val_steps=0).fit(module, **loaders(n=16))


class Branches(nn.Module):
    """Runs, and cannot be traced: what it computes depends on the numbers in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x if x.sum() > 0 else -x)


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (Branches, {"target_macs": 0.5, "network": "net"}, TraceError, "cannot be traced"),
    (network, {"target_macs": 0.05, "min_keep": 0.9}, TargetError, "cannot be met: .* every layer at its floor"),
    (network, {"target_macs": 0.5, "exclude": ["nowhere"]}, ChannelError, "exclude"),
    (network, {"target_macs": 0.5, "exclude": ["0", "3"]}, ChannelError, "may be removed: .*excluded"),
    (network, {"target_macs": 0.5, "steps": 9}, PhaseError, "steps=9 removals need a sparsify phase of 8 batches"),
]


@pytest.mark.parametrize(("make", "options", "error", "message"), REFUSED)
def test_before_the_first_batch(
    make: Any, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    module, callback = Toy(), FPGMCallback(warmup=1, sparsify=1, recalibrate_batches=0, **options)
    module.net = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(error, match=message):
        fit(tmp_path, callback, module)
    assert callback.seen == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Changes(Toy):
    """In its second epoch the network is, by an attribute, another one; or its first layer thaws."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change
        if change == "thaws":
            self.requires_grad_(False)
            self.net[8].requires_grad_(True)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1 and self.change == "attribute":
            self.net.extra_attribute = 3
        if self.current_epoch == 1 and self.change == "thaws":
            self.requires_grad_(True)


@pytest.mark.parametrize(("change", "traces"), [("", 1), ("attribute", 2), ("thaws", 2)])
def test_the_graph_stands_until_something_changes(
    change: str, traces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trace a fit; what does not train at first is no reason to refuse: it may later."""
    calls, trace = [], ChannelGraph.trace
    monkeypatch.setattr(ChannelGraph, "trace", lambda *given, **named: calls.append(1) or trace(*given, **named))
    callback = MRTSCallback(target_macs=0.5, warmup=1, sparsify=1, recalibrate_batches=0)
    fit(tmp_path, callback, Changes(change))
    assert callback.stage == "pruned"
    assert len(calls) == traces


def test_what_a_graph_depends_on() -> None:
    net, example = network(), Arguments((torch.zeros(2, 1, 8, 8),), {})
    foreseen = Foreseen.of(net, example, {})
    assert foreseen.stands(net.train(False), Arguments((torch.ones(2, 1, 8, 8),), {}))
    assert not foreseen.stands(net, Arguments((torch.zeros(2, 1, 9, 9),), {}))
    assert not foreseen.stands(network(), example)
    for change in (
        lambda: net[0].weight.requires_grad_(False),
        lambda: setattr(net[3], "stride", (1, 1)),
        lambda: net.append(nn.ReLU()),
    ):
        foreseen = Foreseen.of(net, example, {})
        change()
        assert not foreseen.stands(net, example)
