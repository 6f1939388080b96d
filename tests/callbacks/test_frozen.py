"""Layers that do not train: their channels stay, and are named in one line; ``prune_frozen`` removes them too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_prune import ChannelError, FPGMCallback, MRTSCallback, ScorePruningCallback, TimmClassifier
from tests.callbacks.methods import Make, equal, fit, size
from tests.toy import Toy, samples

METHODS: dict[str, Make] = {"mrts": MRTSCallback, "fpgm": FPGMCallback}


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest) -> Make:
    return METHODS[request.param]


def caught(path: Path, make: Make, module: Any, **options: Any) -> tuple[Any, Any, list[str]]:
    """A fit, and what it warned of."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        module, callback, _ = fit(path, make, module, **options)
    return module, callback, [str(w.message) for w in record]


def frozen_lines(said: list[str]) -> list[str]:
    return [line for line in said if "leaves whole" in line and "frozen (requires_grad=False" in line]


def frozen_stem() -> Toy:
    module = Toy()
    module.net[:2].requires_grad_(False)
    return module


class HeldByNone(Toy):
    """The optimizer holds all but the stem."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[3:].parameters(), lr=0.05)


@pytest.mark.parametrize("kind", [frozen_stem, HeldByNone])
def test_frozen_channels_stay_and_are_named_in_one_line(make: Make, kind: Any, tmp_path: Path) -> None:
    module, callback, said = caught(tmp_path, make, kind(), options={"target_macs": 0.8})
    assert module.net[0].out_channels == module.net[1].num_features == 8
    assert module.net[3].out_channels < 16
    assert callback.numbers["macs"] <= 0.8
    name = "0" if make is FPGMCallback else "1"  # the convolution, or the norm whose factors decide
    assert frozen_lines(said) == [
        f"{callback.__class__.__name__} leaves whole {name}: frozen (requires_grad=False, or held by no optimizer)."
    ]


@pytest.mark.parametrize("kind", [frozen_stem, HeldByNone])
def test_frozen_channels_go_if_asked(make: Make, kind: Any, tmp_path: Path) -> None:
    options = {"target_macs": 0.6, "prune_frozen": True, "exclude": ["4"]}
    module, callback, said = caught(tmp_path, make, kind(), options=options)
    assert module.net[0].out_channels < 8
    assert callback.numbers["macs"] <= 0.6
    assert not frozen_lines(said)


class Thawing(Toy):
    """Its second convolution trains from the middle of the sparsify phase on."""

    def __init__(self) -> None:
        super().__init__()
        self.net[3:5].requires_grad_(False)

    def on_train_batch_start(self, *args: Any) -> None:
        self.net[3:5].requires_grad_(self.global_step >= 10)


def test_what_did_not_train_at_the_first_of_several_removals_stays_whole(tmp_path: Path) -> None:
    options = {"steps": 3, "warmup": 1, "sparsify": 1, "target_macs": 0.8}
    module, _, said = caught(tmp_path, ScorePruningCallback, Thawing(), options=options, max_epochs=3)
    assert module.net[0].out_channels < 8
    assert module.net[3].out_channels == 16
    assert sum("3.weight" in line and "began to train after the sparsify phase" in line for line in said) == 1


def test_all_but_the_head_frozen_is_an_error_that_says_so(make: Make, tmp_path: Path) -> None:
    module = Toy()
    module.net[:8].requires_grad_(False)
    before = {name: p.clone() for name, p in module.named_parameters()}
    with pytest.raises(ChannelError, match=r"frozen \(requires_grad=False"):
        fit(tmp_path, make, module)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters() if not name.startswith("net.8"))


def fresh_resnet(head_only: bool) -> TimmClassifier:
    """timm's ResNets start with the last scale factors of each block at zero."""
    torch.manual_seed(0)
    module = TimmClassifier("test_resnet", num_classes=4, in_chans=1)
    if head_only:
        module.model.requires_grad_(False)
        module.model.get_classifier().requires_grad_(True)
    zero = [name for name, p in module.model.named_parameters() if name.endswith("weight") and not p.any()]
    assert zero
    return module


@pytest.mark.parametrize("options", [{"target_macs": 0.5}, {"target_macs": 0.9, "warmup": 0}], ids=str)
def test_a_fresh_resnet_whose_head_alone_trains_loses_nothing(
    make: Make, options: dict[str, Any], tmp_path: Path
) -> None:
    module = fresh_resnet(head_only=True)
    with pytest.raises(ChannelError, match=r"frozen \(requires_grad=False"):
        fit(tmp_path, make, module, options=options, max_epochs=5)
    assert size(module) == size(fresh_resnet(head_only=False))
    backbone, dense = (dict(m.model.named_parameters()) for m in (module, fresh_resnet(head_only=False)))
    assert all(torch.equal(p, dense[name]) for name, p in backbone.items() if not p.requires_grad)


def test_a_fresh_resnet_of_which_one_stage_is_frozen_keeps_it_whole(make: Make, tmp_path: Path) -> None:
    module = fresh_resnet(head_only=False)
    module.model.layer2.requires_grad_(False)
    dense = fresh_resnet(head_only=False).model.layer2
    module, callback, said = caught(tmp_path, make, module, options={"target_macs": 0.7}, max_epochs=5)
    assert callback.numbers["macs"] <= 0.7
    assert [m.num_features for n, m in module.model.layer2.named_modules() if "bn" in n] == [
        m.num_features for n, m in dense.named_modules() if "bn" in n
    ]
    assert len(frozen_lines(said)) == 1
    assert "layer2" in frozen_lines(said)[0]


def test_a_fresh_resnet_of_which_all_is_frozen_shrinks_if_asked(make: Make, tmp_path: Path) -> None:
    module = fresh_resnet(head_only=True)
    module, callback, _ = caught(
        tmp_path, make, module, options={"target_macs": 0.5, "prune_frozen": True}, max_epochs=5
    )
    assert callback.numbers["macs"] <= 0.5
    assert size(module) < size(fresh_resnet(head_only=False))
    assert module(samples(2).tensors[0]).isfinite().all()
    assert not equal(module, fresh_resnet(head_only=False))
