"""Networks that do something else in train mode: what only runs there is part of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelGraph, SurgeryError, prune_channels
from lightning_prune.channels.trace import training
from lightning_prune.support.modes import mode
from tests.channels.models import Branches, Chain, conv_bn, random_scores, randomise, silenced

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Auxiliary(nn.Module):
    """A head that only runs in train mode, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8), conv_bn(8, 12)
        self.side, self.drop, self.side_head = conv_bn(8, 6), nn.Dropout(0.5), nn.Linear(6, 5)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        out = self.head(self.body(x).mean((2, 3)))
        return (out, self.beside(x)) if self.training else out

    def beside(self, x: Tensor) -> Tensor:
        return self.side_head(self.drop(self.side(x).mean((2, 3))))


class SharedHead(nn.Module):
    """Deep supervision: the one head reads two stages in train mode, so their channels are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        y = self.second(x)
        out = self.head(y.mean((2, 3)))
        return (out, self.head(x.mean((2, 3)))) if self.training else out


class Widths(Auxiliary):
    """Its train-mode code has a width written into it, which only a rewritten graph can change."""

    def beside(self, x: Tensor) -> Tensor:
        return super().beside(x.reshape(-1, 8, 144).reshape(-1, 8, 12, 12))


class Untraceable(Auxiliary):
    """Its train-mode code looks at values."""

    def beside(self, x: Tensor) -> Tensor:
        return super().beside(x if x.sum() > -1e9 else -x)


class Targets(Auxiliary):
    """It wants targets in train mode."""

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        if self.training and targets is None:
            raise ValueError("targets should not be none")
        return super().forward(x)


def pruned(make: Callable[[], nn.Module], **options: Any) -> tuple[nn.Module, nn.Module, Any]:
    """(dense, compact, result), 0.4 of all channels of norms gone."""
    torch.manual_seed(0)
    dense = randomise(make())
    small = copy.deepcopy(dense)
    return dense, small, prune_channels(small, EXAMPLE, scores=random_scores(small), ratio=0.4, **options)


def in_training(model: nn.Module, x: Tensor) -> Any:
    """A train-mode run without dropout."""
    with mode(model, True, noise=False):
        return model(x)


@pytest.mark.parametrize(("make", "form"), [(Auxiliary, "auto"), (SharedHead, "auto"), (Auxiliary, "graph")])
def test_train_mode_computes_what_the_masked_network_does(make: Any, form: str) -> None:
    dense, small, result = pruned(make, form=form)
    assert result.proof.training
    assert "in eval and in train mode" in str(result.proof)
    reference = silenced(copy.deepcopy(dense), result.plan).double()
    small = small.double()
    if form == "auto":
        for mine, theirs in zip(
            in_training(small, EXAMPLE.double()), in_training(reference, EXAMPLE.double()), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    small.train()
    sum(out.square().sum() for out in small(EXAMPLE.double())).backward()
    assert all(p.grad is not None for p in small.parameters())
    assert small.get_parameter("head.weight").shape[1] < dense.get_parameter("head.weight").shape[1]


def test_channels_that_only_a_train_mode_head_has_go_too() -> None:
    dense, small, _ = pruned(Auxiliary)
    assert len(small.side[0].weight) < len(dense.side[0].weight)
    assert small.side[0].weight.shape[1] == len(small.stem[0].weight) < 8
    torch.manual_seed(0)
    only = randomise(Auxiliary())
    prune_channels(only, EXAMPLE, keep={"side.1": range(3)})
    assert [tuple(only.side[0].weight.shape), tuple(only.stem[0].weight.shape)] == [(3, 8, 3, 3), (8, 3, 3, 3)]


def test_constants_are_folded_into_what_only_train_mode_reads() -> None:
    torch.manual_seed(0)
    dense = Auxiliary()
    dense.body, dense.side = conv_bn(8, 12, 1), nn.Conv2d(8, 6, 1)  # padding would cut the constant off
    randomise(dense).stem[1].weight.data[:3] = 0.0
    small = copy.deepcopy(dense)
    prune_channels(small, EXAMPLE, constants="fold")
    assert len(small.stem[0].weight) == 8 - 3
    with mode(small, True, noise=False, statistics=False), mode(dense, True, noise=False, statistics=False):
        torch.testing.assert_close(small(EXAMPLE)[1], dense(EXAMPLE)[1], rtol=1e-5, atol=1e-5)


def test_a_width_in_train_mode_code_stays_or_is_rewritten() -> None:
    dense, own, result = pruned(Widths)
    assert result.plan.form == "eager"
    assert len(own.stem[0].weight) == 8
    _, small, result = pruned(Widths, form="graph")
    assert len(small.stem[0].weight) < 8
    for model in (own, small):
        assert model.train()(EXAMPLE)[1].shape == (2, 5)
        assert model.head.in_features < dense.head.in_features


@pytest.mark.parametrize("make", [Untraceable, Targets])
def test_what_feeds_an_untraceable_head_stays(make: Any) -> None:
    _, small, result = pruned(make)
    assert [note for note in result.notes if "side" in note and "only train mode reaches" in note]
    assert len(small.stem[0].weight) == 8
    assert small.head.in_features < 12
    assert result.proof.training == (make is Untraceable)
    small.train()
    assert [tuple(out.shape) for out in small(*(EXAMPLE, EXAMPLE)[: 1 + (make is Targets)])] == [(2, 5), (2, 5)]


def test_a_mistake_in_train_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof looks at train mode by itself, whatever the trace has seen."""
    monkeypatch.setattr("lightning_prune.channels.graph.modes._hold", lambda *a: [])
    monkeypatch.setattr("lightning_prune.channels.verify.find_form.expressible", lambda *a: [])
    torch.manual_seed(0)
    model = randomise(Untraceable())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(SurgeryError, match=r"fails in train mode at side\.0 \(Conv2d\).*unchanged"):
        prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.4, form="eager")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_one_sample_and_no_trace_of_the_check() -> None:
    """A batch of one has no variance in train mode; statistics and random state stay."""
    torch.manual_seed(0)
    model = randomise(Auxiliary())
    model.side[0] = nn.Conv2d(8, 6, 12)
    state, norms = torch.get_rng_state(), model.stem[1].running_mean.clone()
    result = prune_channels(model, EXAMPLE[:1], keep={"body.1": range(6)})
    assert result.proof.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.stem[1].running_mean, norms)
    assert model.stem[1].num_batches_tracked == 0


class Passing(nn.Module):
    """Hands its mode to dropout, and chooses a number by it: the same calls in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rate = Chain(), 0.3

    def forward(self, x: Tensor) -> Tensor:
        rate = self.rate if self.training else 0.0
        return nn.functional.dropout(self.inner(x), rate, training=self.training)


@pytest.mark.parametrize("make", [Chain, Branches, Passing])
def test_a_network_without_such_branches_is_traced_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_calls", lambda *a: pytest.fail("its code was run to compare the modes"))
    graph = ChannelGraph.trace(randomise(make()), EXAMPLE)
    assert not graph.traced.apart


def test_an_unused_parameter_alone_is_no_branch() -> None:
    model = randomise(Chain())
    model.unused = nn.Parameter(torch.zeros(3))
    graph = ChannelGraph.trace(model, EXAMPLE)
    assert not graph.traced.apart
    assert graph.size > 0
