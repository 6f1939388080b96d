"""Fashion-MNIST, CIFAR and image folders, from small files of their formats."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_prune.zoo.data.datasets as data
from lightning_prune.zoo.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
)
from lightning_prune.zoo.data.images import ImageTensors
from tests.zoo.data.files import RAW, idx_bytes, write_cifar, write_fashion, write_folder


@pytest.mark.parametrize(("layout", "compress"), [(RAW, True), (RAW, False), (".", True)])
def test_fashion_mnist_is_found_in_each_layout(tmp_path: Path, layout: str, compress: bool) -> None:
    arrays = write_fashion(tmp_path / "root" / layout, compress=compress)
    module = FashionMNISTDataModule(root=str(tmp_path / "root"), val_split=0.1, batch_size=30)
    module.prepare_data()
    module.setup()
    sizes = [len(p) for p in (module.train_set, module.val_set, module.test_set)]  # type: ignore[arg-type]
    assert sizes == [180, 20, 40]
    assert (module.num_classes, module.in_chans) == (10, 1)
    test = module.test_set
    assert isinstance(test, ImageTensors)
    assert (test.images.squeeze(1).numpy() == arrays["t10k-images-idx3-ubyte"]).all()
    assert (test.labels.numpy() == arrays["t10k-labels-idx1-ubyte"]).all()
    used = torch.cat([p.images[:, 0, 0, 0] for p in (module.train_set, module.val_set)])  # type: ignore[union-attr]
    assert sorted(used.tolist()) == list(range(200))  # every training image once, in one part or the other
    assert next(iter(module.train_dataloader()))[0].shape == (30, 1, 28, 28)


def test_fashion_mnist_uses_debians_folder_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FASHION_MNIST_DEBIAN", tmp_path / "debian")
    write_fashion(tmp_path / "debian", train=50)
    module = FashionMNISTDataModule(root=str(tmp_path / "none"), val_split=0.0)
    module.setup()
    assert len(module.train_set) == 50  # type: ignore[arg-type]
    assert module.val_dataloader() == []
    write_fashion(tmp_path / "mine" / RAW, train=60)
    module = FashionMNISTDataModule(root=str(tmp_path / "mine"), val_split=0.0)
    module.setup()
    assert len(module.train_set) == 60  # type: ignore[arg-type]


def test_a_missing_fashion_mnist_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FASHION_MNIST_DEBIAN", tmp_path / "debian")
    write_fashion(tmp_path / "part" / RAW)
    next((tmp_path / "part" / RAW).glob("t10k-labels*")).unlink()  # three files of four are not a data set
    with pytest.raises(FileNotFoundError) as caught:
        FashionMNISTDataModule(root=str(tmp_path / "part")).setup()
    for piece in (str(tmp_path / "part" / RAW), str(tmp_path / "debian"), "download=True", "dataset-fashion-mnist"):
        assert piece in str(caught.value)


def test_fashion_mnist_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path / RAW, compress=False)
    (tmp_path / RAW / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(199, dtype=np.uint8)))
    with pytest.raises(ValueError, match="do not match"):
        FashionMNISTDataModule(root=str(tmp_path)).setup()


@pytest.mark.parametrize(("cls", "classes"), [(CIFAR10DataModule, 10), (CIFAR100DataModule, 100)])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type[CIFAR10DataModule], classes: int) -> None:
    with pytest.raises(FileNotFoundError, match=r"CIFAR.*root=.*download=True"):
        cls(root=str(tmp_path)).setup()
    write_cifar(tmp_path, hundred=classes == 100)
    # the checksums of the originals cannot hold for these files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    module = cls(root=str(tmp_path), batch_size=10, subset=10, image_size=16, augment=True)
    module.setup()
    assert (module.num_classes, module.in_chans) == (classes, 3)
    assert next(iter(module.train_dataloader()))[0].shape == (10, 3, 16, 16)
    folder = "cifar-100-python/test" if classes == 100 else "cifar-10-batches-py/test_batch"
    raw = pickle.loads((tmp_path / folder).read_bytes())["data"].reshape(20, 3, 32, 32)
    assert isinstance(module.test_set, ImageTensors)
    assert (module.test_set.images.numpy() == raw).all()


def test_image_folder_with_and_without_a_validation_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {"train": 5, "val": 2, "test": 1})
    module = ImageFolderDataModule(str(tmp_path / "a"), image_size=16, batch_size=4, subset=6)
    assert (module.num_classes, module.in_chans) == (3, 3)
    module.setup()
    sizes = [len(p) for p in (module.train_set, module.val_set, module.test_set)]  # type: ignore[arg-type]
    assert sizes == [6, 6, 3]
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (4, 3, 16, 16)
    assert labels.dtype == torch.int64
    write_folder(tmp_path / "b", {"train": 5})
    split = ImageFolderDataModule(str(tmp_path / "b"), image_size=16, val_split=0.2, augment=False)
    split.setup()
    assert [len(p) for p in (split.train_set, split.val_set)] == [12, 3]  # type: ignore[arg-type]
    assert split.test_set is split.val_set
    assert next(iter(split.train_dataloader()))[0].equal(next(iter(split.train_dataloader()))[0])


def test_image_folder_augments_training_images_only(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 5})
    module = ImageFolderDataModule(str(tmp_path), image_size=16, val_split=0.2)
    module.setup()
    assert "RandomResizedCrop" in repr(module.train_set.dataset.transform)  # type: ignore[attr-defined]
    assert "ColorJitter" in repr(module.train_set.dataset.transform)  # type: ignore[attr-defined]
    assert "Random" not in repr(module.val_set.dataset.transform)  # type: ignore[union-attr]
    plain = ImageFolderDataModule(str(tmp_path), image_size=16, color_jitter=0.0)
    plain.setup()
    assert "ColorJitter" not in repr(plain.train_set.dataset.transform)  # type: ignore[attr-defined]


def test_a_missing_image_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train.*root="):
        ImageFolderDataModule(str(tmp_path)).setup()
