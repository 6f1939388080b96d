"""Weights that `fully_shard` has split over two processes (FSDP2): the thresholds and masks of one, exact budgets."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Subset

from lightning_prune import FPGMCallback, LTPCallback, MagnitudeCallback, TimmClassifier, sparsity_report
from lightning_prune.masks.shards import local
from tests.callbacks.methods import METHODS, N
from tests.callbacks.processes import run_ranks
from tests.callbacks.test_constants import EMPTY, FED, Empties
from tests.callbacks.test_ddp import BATCH, Plain, Shares
from tests.callbacks.toys import WeightGates
from tests.toy import Toy, network, samples, trainer

PHASES: dict[str, Any] = {"target_sparsity": 0.8, "sparsify": 2}
SHORT: dict[str, Any] = {"target_sparsity": 0.8, "sparsify": 1}


class Sharded(Plain):
    """Each layer's rows on both processes."""

    def configure_model(self) -> None:
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])  # the head is gathered with the whole


class Classifier(TimmClassifier):
    """As the page on many machines shows it."""

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.children():
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


class Same(Shares):
    """The same batch over and over: a run that is resumed within an epoch sees what it would have seen."""

    def __iter__(self) -> Any:
        return iter([next(super().__iter__())] * len(self))


def strategy(whole_files: bool = False) -> ModelParallelStrategy:
    return ModelParallelStrategy(2, 1, save_distributed_checkpoint=not whole_files)


def fit(path: Path, callback: Any, module: Toy, data: Any = None, **options: Any) -> Any:
    """Three epochs; halves of the batches where there are two processes."""
    two = isinstance(module, Sharded)
    ckpt_path, extra = options.pop("ckpt_path", None), options.pop("callbacks", [])
    if two:
        options = {"devices": 2, "strategy": strategy()} | options
    defaults = {"max_epochs": 3, "limit_val_batches": 1, "use_distributed_sampler": False}
    run = trainer(path, [callback, *extra], **(defaults | options))
    data = data or (Shares() if two else DataLoader(samples(60), batch_size=BATCH))
    run.fit(module, data, DataLoader(samples(32, seed=1), 16), ckpt_path=ckpt_path)
    return run


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    """All of the weights, on each process."""
    return {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for n, p in module.named_parameters()}


Faded = partial(LTPCallback, gate="fading")
Held = partial(LTPCallback, gate="held")


class Watch(LTPCallback):
    """Notes whether the shards hold masked weights while the network runs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(gate="sigmoid", **options)

    def before_step(self, units: Any, step: Any) -> None:
        seen = [local(t.param).clone() for t in units.targets]
        own = [self._gates[t.name]._aside for t in units.targets]
        masked = [self._gates[t.name].gate.mask(w, None) for t, w in zip(units.targets, own, strict=True)]
        self.right = all(torch.equal(a, b) for a, b in zip(seen, masked, strict=True))
        self.right &= not any(torch.equal(a, b) for a, b in zip(seen, own, strict=True))
        super().before_step(units, step)


def everything(folder: Path) -> dict[str, Any]:
    """What two processes do, one after the other in one pair of them."""
    told: dict[str, Any] = {}
    methods = (("ltp sigmoid", Watch), ("ltp fading", Faded), ("ltp held", Held), ("magnitude", MagnitudeCallback))
    for name, make in methods:
        callback, module = make(**PHASES), Sharded()
        run = fit(folder, callback, module)
        told[name] = {"learned": callback.final_thresholds.tolist(), "zeros": callback.zeros_at_prune}
        told.setdefault("report", sparsity_report(module).zeros)
        told.setdefault("masked in the forward", getattr(callback, "right", None))
        torch.save(whole(module), folder / f"{name} {run.global_rank}.pt")
    ltp, classifier = LTPCallback(target_sparsity=0.9), Classifier("resnet20_cifar", 4, model_kwargs={"width": 4})
    fit(folder, ltp, classifier, Shares(), max_epochs=1, devices=2, strategy=strategy())
    told["timm"] = [sum(ltp.zeros_at_prune), ltp.units.numel, len(ltp.units.targets)]
    for kind, whole_files in (("shards", False), ("whole", True)):
        saved = ModelCheckpoint(folder / kind, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        first, second = Sharded(), Sharded()
        for module, more in (
            (first, {"enable_checkpointing": True, "callbacks": [saved]}),
            (second, {"ckpt_path": str(folder / kind / "step=3.ckpt")}),
        ):
            fit(folder, LTPCallback(**SHORT), module, Same(), max_epochs=2, strategy=strategy(whole_files), **more)
        pairs = zip(whole(first).values(), whole(second).values(), strict=True)
        told[f"resumed from {kind}"] = [float((a - b).abs().max()) for a, b in pairs]
    torch.save(whole(second), folder / f"resumed {torch.distributed.get_rank()}.pt")
    emptied = Sharded()
    emptied.net = network()  # with BatchNorm
    nn.init.constant_(emptied.net[1].bias, 0.5)
    fit(folder, Empties(**SHORT), emptied)
    scales = whole(emptied)
    told["zero scales"] = [scales[f"net.{i}.weight"].eq(0).nonzero().flatten().tolist() for i in (1, 4)]
    refused = {"channels": FPGMCallback(target_macs=0.5), "gates": WeightGates(**PHASES)}
    refused |= {make.__name__: make(target_macs=0.5, warmup=1) for make in (LTPCallback, MagnitudeCallback)}
    for what, callback in refused.items():
        try:
            fit(folder, callback, Sharded())
        except NotImplementedError as error:
            told[what] = f"{error} {callback.seen} batches seen"
    return told


def both(folder: Path) -> None:
    """Run on each rank; writes what it was told."""
    told = everything(folder)
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks wrote what they ended with."""
    folder = tmp_path_factory.mktemp("shards")
    assert run_ranks(2, both, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("method", ["ltp sigmoid", "ltp fading", "ltp held", "magnitude"])
def test_sharded_weights_are_pruned_as_whole_ones(method: str, results: Path, tmp_path: Path) -> None:
    callback, module = (METHODS | {"ltp fading": Faded})[method](**PHASES), Plain()
    fit(tmp_path, callback, module)
    first, second = (json.loads((results / f"rank{n}.json").read_text())[method] for n in (0, 1))
    assert first == second
    assert first["learned"] == pytest.approx(callback.final_thresholds.tolist(), rel=1e-3)
    assert first["zeros"] == callback.zeros_at_prune
    assert abs(sum(first["zeros"]) - 0.8 * N) <= 1
    sharded = torch.load(results / f"{method} 0.pt", weights_only=True)
    for name, param in module.named_parameters():
        assert torch.equal(sharded[name] == 0, param == 0), name
        torch.testing.assert_close(sharded[name], param.detach(), rtol=1e-3, atol=1e-4)


def test_what_stands_in_the_shards_and_what_is_refused(results: Path) -> None:
    told = json.loads((results / "rank1.json").read_text())
    assert told["masked in the forward"]
    zeros, numel, layers = told["timm"]
    assert (zeros, layers) == (round(0.9 * numel), 22)
    assert max(told["resumed from shards"]) == 0
    assert max(told["resumed from whole"]) == 0
    assert "remove channels before" in told["channels"]
    assert "WeightGates does not support ModelParallelStrategy" in told["gates"]
    for name in ("LTPCallback", "MagnitudeCallback"):
        assert re.search("target_macs counts .* give target_sparsity, or train with DDP. 0 batches seen", told[name])
    assert told["zero scales"] == [list(range(EMPTY)), list(range(FED))]
    assert told["report"] == sum(told["ltp sigmoid"]["zeros"])


def test_a_checkpoint_of_shards_goes_on_in_one_process(results: Path, tmp_path: Path) -> None:
    module = Plain()
    data = DataLoader(Subset(samples(60), [*range(BATCH)] * len(Shares())), batch_size=BATCH)  # as `Same`
    fit(tmp_path, LTPCallback(**SHORT), module, data, max_epochs=2, ckpt_path=str(results / "whole" / "step=3.ckpt"))
    uninterrupted = torch.load(results / "resumed 0.pt", weights_only=True)
    for name, param in module.named_parameters():
        assert torch.equal(uninterrupted[name] == 0, param == 0), name
        torch.testing.assert_close(uninterrupted[name], param.detach(), rtol=1e-3, atol=1e-4)
