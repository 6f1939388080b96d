"""The bundled digits: their origin, their split, and their batches."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import load_file

import lightning_prune.zoo.data.datasets as data
from lightning_prune.zoo.data import (
    DigitsDataModule,
)
from tests.zoo.data.files import labels_of


def test_the_bundled_digits_are_the_originals() -> None:
    tensors = load_file(data.DIGITS_FILE)
    content = hashlib.sha256(tensors["images"].numpy().tobytes() + tensors["labels"].numpy().tobytes())
    # of sklearn.datasets.load_digits(): images and target as bytes
    assert content.hexdigest() == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    module = DigitsDataModule(image_size=None, val_split=0.5)
    module.setup()
    parts = [module.train_set, module.val_set, module.test_set]
    used = torch.cat([part.images for part in parts]).flatten(1)  # type: ignore[union-attr]
    assert sorted(used.tolist()) == sorted(tensors["images"].flatten(1).tolist())  # each sample in one part


def test_digits_split_is_stratified_and_its_test_part_fixed() -> None:
    modules = [DigitsDataModule(seed=0), DigitsDataModule(seed=0), DigitsDataModule(seed=1)]
    for module in modules:
        module.setup("fit")
    sizes = [len(part) for part in (modules[0].train_set, modules[0].val_set, modules[0].test_set)]  # type: ignore[arg-type]
    assert sum(sizes) == 1797
    assert sizes[2] == pytest.approx(0.2 * 1797, abs=5)
    assert sizes[1] == pytest.approx(0.2 * (1797 - sizes[2]), abs=5)
    counts = torch.stack([labels_of(getattr(modules[0], f"{p}_set")).bincount() for p in ("train", "val", "test")])
    share = counts / counts.sum(0)
    assert float((share - share.mean(1, keepdim=True)).abs().max()) < 0.01
    a, b, c = modules
    assert a.train_set.images.equal(b.train_set.images)  # type: ignore[attr-defined]
    assert a.test_set.images.equal(c.test_set.images)  # type: ignore[union-attr]
    assert not a.val_set.images.equal(c.val_set.images)  # type: ignore[union-attr]


def test_digits_batches() -> None:
    module = DigitsDataModule(batch_size=64)
    module.setup()
    assert (module.num_classes, module.in_chans) == (10, 1)
    images, labels = next(iter(module.train_dataloader()))
    assert (images.shape, images.dtype) == ((64, 1, 32, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    whole = torch.cat([x for x, _ in module.train_dataloader()])
    assert abs(float(whole.mean())) < 0.05
    assert float(whole.std()) == pytest.approx(0.9, abs=0.1)  # bilinear enlargement smooths a little
    test = torch.cat([y for _, y in module.test_dataloader()])  # type: ignore[union-attr]
    assert test.equal(labels_of(module.test_set))  # in order, nothing dropped
