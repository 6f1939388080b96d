"""The data modules, on the bundled digits and on small files in the formats of the others."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import lightning_prune.zoo.data.datasets as data
from lightning_prune.zoo.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
)
from lightning_prune.zoo.data.images import ImageTensors, random_shift_flip, read_idx
from lightning_prune.zoo.data.loading import seeded_generator
from lightning_prune.zoo.data.module import ImageDataModule

RAW = "FashionMNIST/raw"


def labels_of(dataset: Any) -> Tensor:
    assert isinstance(dataset, ImageTensors)
    return dataset.labels


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_fashion(folder: Path, train: int = 200, test: int = 40, compress: bool = True) -> dict[str, Any]:
    """Four idx files of random images; image i of a part has its index in the first two pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, size in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(size) % 256, np.arange(size) // 256
        arrays[f"{part}-images-idx3-ubyte"], arrays[f"{part}-labels-idx1-ubyte"] = images, np.arange(size) % 10
    for name, array in arrays.items():
        raw = idx_bytes(array.astype(np.uint8))
        (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(raw, 1) if compress else raw)
    return arrays


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read_exactly(tmp_path: Path, compress: bool) -> None:
    arrays = write_fashion(tmp_path / "x", compress=compress)
    for name, array in arrays.items():
        tensor = read_idx(tmp_path / "x" / (f"{name}.gz" if compress else name))
        assert tensor.dtype == torch.uint8
        assert (tensor.numpy() == array).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08", "not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an idx file"),  # floats
        (b"\0\0\x08\x09" + bytes(36), "not an idx file"),  # nine dimensions
        (b"\0\0\x08\x02\0\0\0\x01", "declares shape"),  # header cut
        (b"\0\0\x08\x01\0\0\0\x05abcd", "declares shape"),  # data cut
        (b"\0\0\x08\x01\0\0\0\x03abcd", "declares shape"),  # data left over
        (b"\0\0\x08\x04" + b"\xff" * 16, "declares shape"),  # 2**128 bytes declared
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file-idx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"file-idx.*{message}"):
        read_idx(path)
    compressed = tmp_path / "cut.gz"
    compressed.write_bytes(gzip.compress(idx_bytes(np.arange(100, dtype=np.uint8)))[:-9])
    with pytest.raises(ValueError, match=r"cut\.gz is damaged"):
        read_idx(compressed)
    compressed.write_bytes(content + b"x")
    with pytest.raises(ValueError, match=r"cut\.gz is damaged"):
        read_idx(compressed)


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


def test_subset_is_balanced_and_too_large_a_subset_is_refused() -> None:
    module = DigitsDataModule(subset=100)
    module.setup()
    assert labels_of(module.train_set).bincount().tolist() == [10] * 10
    with pytest.raises(ValueError, match="subset=5000 but DigitsDataModule has 1"):
        DigitsDataModule(subset=5000).setup()


def test_small_sets_still_give_a_batch_and_a_rest_of_one_is_dropped() -> None:
    small = DigitsDataModule(subset=10, batch_size=64)
    small.setup()
    assert [len(y) for _, y in small.train_dataloader()] == [10]
    odd = DigitsDataModule(subset=33, batch_size=16)
    odd.setup()
    assert [len(y) for _, y in odd.train_dataloader()] == [16, 16]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"subset": 0}, {"image_size": 0}, {"val_split": 1.0}])
def test_impossible_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        DigitsDataModule(**bad)


def test_image_tensors_normalise_and_resize() -> None:
    raw = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).view(1, 1, 2, 2)
    plain = ImageTensors(raw, torch.tensor([3]), mean=(0.5,), std=(0.25,))
    image, label = plain[0]
    torch.testing.assert_close(image, torch.tensor([[[-2.0, 2.0], [2.0, -2.0]]]))
    assert int(label) == 3
    large = ImageTensors(raw, torch.tensor([3]), mean=(0.0,), std=(1.0,), image_size=4)
    expected = torch.nn.functional.interpolate(raw.float() / 255, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(large.__getitems__([0, 0])[0], expected.expand(2, 1, 4, 4))
    one = ImageTensors(raw, torch.tensor([3]), mean=(0.0,), std=(1.0,), image_size=1)
    torch.testing.assert_close(one[0][0], torch.tensor([[[0.5]]]))


def test_shift_and_flip_move_pixels_and_nothing_else() -> None:
    images = torch.rand(64, 2, 6, 6) + 1
    fill = torch.tensor([-1.0, -2.0])
    moved = random_shift_flip(images, 2, True, fill, seeded_generator(0))
    shifts, flips = set(), set()
    for before, after in zip(images, moved, strict=True):
        padded = fill.view(2, 1, 1).repeat(1, 10, 10)
        matches = []
        for flip in (False, True):
            padded[:, 2:8, 2:8] = before
            for top in range(5):
                for left in range(5):
                    window = padded[:, top : top + 6, left : left + 6]
                    if after.equal(window.flip(2) if flip else window):
                        matches.append((flip, top, left))
        assert len(matches) == 1
        flips.add(matches[0][0])
        shifts.add(matches[0][1:])
    assert flips == {False, True}
    assert len(shifts) > 15
    assert random_shift_flip(images, 0, False, fill, seeded_generator(0)).equal(images)
    assert moved.equal(random_shift_flip(images, 2, True, fill, seeded_generator(0)))


def test_augmentation_touches_training_batches_only_and_replays() -> None:
    plain, augmented = DigitsDataModule(), DigitsDataModule(augment=True)
    for module in (plain, augmented):
        module.setup()
    first, second = (next(iter(m.train_dataloader())) for m in (plain, augmented))
    assert first[1].equal(second[1])
    assert not first[0].equal(second[0])
    assert second[0].equal(next(iter(augmented.train_dataloader()))[0])
    validation = [next(iter(m.val_dataloader()))[0] for m in (plain, augmented)]  # type: ignore[index]
    assert validation[0].equal(validation[1])


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


def write_cifar(root: Path, hundred: bool) -> None:
    """Small batches in the layout and the pickled form of the originals."""
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    names = ["train", "test"] if hundred else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    key = "fine_labels" if hundred else "labels"
    for name in names:
        entry = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), key: [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(entry))
    meta = {"fine_label_names" if hundred else "label_names": [str(i) for i in range(10)]}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(meta))


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


def write_folder(root: Path, parts: dict[str, int]) -> None:
    for part, size in parts.items():
        for name in ("ant", "bee", "cat"):
            (root / part / name).mkdir(parents=True)
            for i in range(size):
                shade = np.full((20 + i, 24, 3), 40 * i, dtype=np.uint8)
                Image.fromarray(shade).save(root / part / name / f"{i}.png")


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
    assert "Random" not in repr(module.val_set.dataset.transform)  # type: ignore[union-attr]


def test_a_missing_image_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train.*root="):
        ImageFolderDataModule(str(tmp_path)).setup()


@pytest.mark.parametrize(
    "cls", [DigitsDataModule, FashionMNISTDataModule, CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule]
)
def test_arguments_go_through_jsonargparse(cls: type[ImageDataModule]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "data")
    given = {"batch_size": 7, "num_workers": 1, "image_size": 24, "subset": 30, "val_split": 0.3, "seed": 4}
    arguments = [f"--data.{key}={value}" for key, value in given.items()] + ["--data.augment=true"]
    if cls is not DigitsDataModule:
        arguments.append("--data.root=x")
    module = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert {key: getattr(module, key) for key in given} == given
    assert module.augment is True


def test_a_trainer_takes_the_digits(tmp_path: Path) -> None:
    class Count(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1024, 10)
            self.steps = {"train": 0, "val": 0, "test": 0}

        def _loss(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
            self.steps[part] += 1
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self._loss(batch, "train")

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self._loss(batch, "val")

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self._loss(batch, "test")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Count()
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=100, subset=300))
    trainer.test(module, datamodule=DigitsDataModule(batch_size=100), verbose=False)
    assert module.steps == {"train": 3, "val": 3, "test": 4}
