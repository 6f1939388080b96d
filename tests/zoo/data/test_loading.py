"""Splits, subsets and the replay of batches, on their own and inside a Trainer."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.data import _update_dataloader
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_prune.zoo.data.images import ImageTensors
from lightning_prune.zoo.data.loading import (
    EpochSampler,
    ReplayLoader,
    balanced_order,
    seeded_generator,
    stratified_split,
)

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)


def jitter(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images, labels = batch
    return images + torch.rand(images.shape, generator=generator), labels


def loader(workers: int = 0, batch_size: int = 4, size: int = 20) -> Any:
    images = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    data = ImageTensors(images, torch.arange(size), (0.0,), (1.0,))
    sampler = EpochSampler(size, seed=3)
    return ReplayLoader(data, seed=3, augment=jitter, sampler=sampler, batch_size=batch_size, num_workers=workers)


class Recorder(pl.LightningModule):
    """Records every training batch and moves a weight with it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append(images.clone())
        return nn.functional.cross_entropy(self.layer(images.flatten(1)), labels % 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, train: ReplayLoader, ckpt: Path | None = None, **kwargs: Any) -> Recorder:
    torch.manual_seed(0)
    module = Recorder()
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[every],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(module, train, ckpt_path=ckpt)
    return module


def test_stratified_split_keeps_the_share_of_every_class_and_repeats() -> None:
    first, second = stratified_split(LABELS, 0.2, seed=5)
    assert LABELS[second].bincount().tolist() == [10, 6, 4]
    assert torch.cat([first, second]).sort().values.equal(torch.arange(100))
    again = stratified_split(LABELS, 0.2, seed=5)
    assert second.equal(again[1])
    assert not second.equal(stratified_split(LABELS, 0.2, seed=6)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_stratified_split_refuses_bad_fractions(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        stratified_split(LABELS, fraction, seed=0)


@pytest.mark.parametrize(("size", "counts"), [(3, [1, 1, 1]), (30, [10, 10, 10]), (90, [40, 30, 20])])
def test_every_prefix_of_the_balanced_order_is_balanced(size: int, counts: list[int]) -> None:
    order = balanced_order(LABELS, seed=1)
    assert order.sort().values.equal(torch.arange(100))
    assert LABELS[order[:size]].bincount().tolist() == counts
    assert not order.equal(balanced_order(LABELS, seed=2))


def test_generators_differ_by_every_coordinate() -> None:
    grid = itertools.product((0, 1, 2), (0, 1, 2), (0, 1, 2))
    draws = {tuple(torch.randint(2**31, (4,), generator=seeded_generator(*position)).tolist()) for position in grid}
    assert len(draws) == 27


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_a_function_of_epoch_and_position(workers: int) -> None:
    train = loader(workers)
    epochs = []
    for epoch in (0, 1, 0):
        torch.rand(1)  # global random state plays no part
        train.sampler.set_epoch(epoch)
        epochs.append(torch.cat([images for images, _ in train]))
    assert epochs[0].equal(epochs[2])
    assert not epochs[0].equal(epochs[1])
    assert sorted(torch.cat([labels for _, labels in train]).tolist()) == list(range(20))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_epoch_may_be_set_after_iter(workers: int) -> None:
    """Lightning makes the iterator first; workers must not have prefetched epoch 0 by then."""
    train = loader(workers)
    iterator = iter(train)
    train.sampler.set_epoch(1)
    early = torch.cat([images for images, _ in iterator])
    assert early.equal(torch.cat([images for images, _ in train]))


def test_resume_reads_only_what_is_left() -> None:
    class Counting(TensorDataset):
        read: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return super().__getitem__(index)

    train = ReplayLoader(Counting(torch.arange(20.0)), sampler=EpochSampler(20, 0), batch_size=4)
    whole = [batch[0] for batch in train]
    partial = iter(train)
    for _ in range(3):
        next(partial)
    state = train.state_dict()
    assert state == {"epoch": 0, "batches": 3}
    train.load_state_dict(state)
    Counting.read.clear()
    rest = [batch[0] for batch in train]
    assert [r.equal(w) for r, w in zip(rest, whole[3:], strict=True)] == [True, True]
    assert len(Counting.read) == 8
    assert len(list(train)) == 5  # a state is used once
    train.load_state_dict({"epoch": 4, "batches": 3})
    assert len(list(train)) == 5  # and not for another epoch


# 5 batches in an epoch: in the middle of one, and at the end
@pytest.mark.parametrize(("step", "workers"), [(2, 0), (2, 1), (5, 0), (7, 0), (10, 0), (10, 1)])
def test_a_resumed_fit_sees_the_same_batches(tmp_path: Path, step: int, workers: int) -> None:
    whole = fit(tmp_path / "a", loader(workers))
    assert len(whole.seen) == 15
    resumed = fit(tmp_path / "b", loader(workers), ckpt=tmp_path / "a" / f"step={step}.ckpt")
    assert len(resumed.seen) == 15 - step
    torch.load(tmp_path / "a" / f"step={step}.ckpt", weights_only=True)  # the position is plain numbers
    assert all(a.equal(b) for a, b in zip(resumed.seen, whole.seen[step:], strict=True))
    assert resumed.layer.weight.equal(whole.layer.weight)


def test_a_resumed_fit_with_limited_batches_starts_its_next_epoch_at_the_front(tmp_path: Path) -> None:
    whole = fit(tmp_path / "a", loader(), limit_train_batches=3)
    resumed = fit(tmp_path / "b", loader(), ckpt=tmp_path / "a" / "step=3.ckpt", limit_train_batches=3)
    assert all(a.equal(b) for a, b in zip(resumed.seen, whole.seen[3:], strict=True))
    assert resumed.layer.weight.equal(whole.layer.weight)


def test_lightning_sets_the_epoch(tmp_path: Path) -> None:
    seen = fit(tmp_path, loader()).seen
    train = loader()
    for epoch in range(3):
        train.sampler.set_epoch(epoch)
        assert torch.cat(seen[5 * epoch : 5 * epoch + 5]).equal(torch.cat([images for images, _ in train]))


def test_the_loader_survives_lightnings_distributed_sampler() -> None:
    """Lightning rebuilds the loader around a wrapped sampler; two ranks then share each epoch without overlap."""
    ranks = []
    for rank in range(2):
        base = loader(batch_size=2)
        sampler = DistributedSamplerWrapper(base.sampler, num_replicas=2, rank=rank, shuffle=True)
        train = _update_dataloader(base, sampler)
        assert isinstance(train, ReplayLoader)
        assert (train.seed, train.augment) == (base.seed, base.augment)
        sampler.set_epoch(2)
        assert (train.epoch, base.sampler.epoch) == (2, 2)
        whole = list(train)
        train.load_state_dict({"epoch": 2, "batches": 2})
        assert all(a[0].equal(b[0]) for a, b in zip(train, whole[2:], strict=True))
        ranks.append(torch.cat([labels for _, labels in whole]).tolist())
    assert [len(rank) for rank in ranks] == [10, 10]
    assert sorted(ranks[0] + ranks[1]) == list(range(20))
