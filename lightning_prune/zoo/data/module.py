"""What the data modules share: arguments, splits and loaders."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_prune.zoo.data.images import ImageTensors, random_shift_flip
from lightning_prune.zoo.data.loading import Augment, EpochSampler, ReplayLoader, balanced_order, stratified_split


class ReplayDataModule(LightningDataModule):
    """Data whose training batches a resumed run sees again. Subclasses say what they are.

    Args:
        batch_size: samples in a batch; a last, smaller training batch is dropped, evaluation batches are not.
        num_workers: worker processes of each loader. The in-memory data sets do best with 0.
        val_split: share of the training data held out for validation, in [0, 1); 0 validates on nothing.
        seed: seed of the validation split and of the order of training samples.

    Attributes:
        num_classes: number of classes.
        in_chans: number of channels of an input.
        train_set: the training data, after ``setup``; so are ``val_set`` and ``test_set``, None
            where there is no such data.
    """

    num_classes: int
    in_chans: int
    train_set: Dataset[Any]
    val_set: Dataset[Any] | None
    test_set: Dataset[Any] | None

    def __init__(self, batch_size: int = 128, num_workers: int = 0, val_split: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if not 0.0 <= val_split < 1.0:
            raise ValueError(f"val_split must be in [0, 1), got {val_split}")
        self.batch_size, self.num_workers, self.val_split, self.seed = batch_size, num_workers, val_split, seed
        self._ready = False

    def _build(self) -> None:
        """Sets the three data sets."""
        raise NotImplementedError

    def _batch_augmentation(self) -> Augment | None:
        """What to do to whole training batches; None for data sets that augment single samples or nothing."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Reads the data once, whatever the stage."""
        if not self._ready:
            self._build()
            self._ready = True

    def train_dataloader(self) -> ReplayLoader:
        """Returns the training loader: shuffled by (seed, epoch), resumable anywhere in an epoch."""
        size = len(self.train_set)  # type: ignore[arg-type]
        return ReplayLoader(
            self.train_set,
            seed=self.seed,
            augment=self._batch_augmentation(),
            batch_size=self.batch_size,
            sampler=EpochSampler(size, self.seed),
            num_workers=self.num_workers,
            # a last batch of one sample would break BatchNorm
            drop_last=size >= self.batch_size,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _eval_loader(self, dataset: Dataset[Any] | None) -> DataLoader[Any] | list[DataLoader[Any]]:
        if dataset is None:
            return []
        # ReplayLoader also takes data sets that return whole batches; without a sampler it goes in order
        return ReplayLoader(
            dataset, batch_size=self.batch_size, num_workers=self.num_workers, pin_memory=torch.cuda.is_available()
        )

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Returns the validation loader, in order; an empty list, which Lightning skips, without validation data."""
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Returns the test loader, in order; an empty list without test data."""
        return self._eval_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Returns the test loader, in order; an empty list without test data."""
        return self.test_dataloader()


class ImageDataModule(ReplayDataModule):
    """Images and their classes. Subclasses say where they come from.

    Args:
        batch_size: samples in a batch; a last, smaller training batch is dropped, evaluation batches are not.
        num_workers: worker processes of each loader. The in-memory data sets do best with 0.
        image_size: height and width in pixels, bilinear; None keeps the data set's own size.
        subset: number of training samples to use, balanced over the classes; None uses all.
        val_split: share of the training data held out for validation, in [0, 1); 0 validates on nothing.
        seed: seed of the validation split, the subset, the order of training samples and their augmentation.
        augment: augment training images.
    """

    def __init__(
        self,
        batch_size: int = 128,
        num_workers: int = 0,
        image_size: int | None = None,
        subset: int | None = None,
        val_split: float = 0.1,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, val_split, seed)
        if (subset is not None and subset < 1) or (image_size is not None and image_size < 1):
            raise ValueError(f"subset={subset} and image_size={image_size} must be positive")
        self.image_size, self.subset, self.augment = image_size, subset, augment

    def _split(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of training (after ``subset``) and validation samples among the training data."""
        train, val = stratified_split(labels, self.val_split, self.seed)
        return self._pick(train, labels), val

    def _pick(self, train: Tensor, labels: Tensor) -> Tensor:
        """The ``subset`` of the training indices, sorted."""
        if self.subset is None:
            return train
        if self.subset > len(train):
            raise ValueError(f"subset={self.subset} but {type(self).__name__} has {len(train)} training samples")
        return train[balanced_order(labels[train], self.seed)[: self.subset]].sort().values


class InMemoryDataModule(ImageDataModule):
    """Data modules whose images are held in memory as bytes; they differ in where the bytes come from.

    Subclasses set the normalisation (``mean``, ``std`` of pixels in [0, 1]), ``white``, and whether a mirrored image
    is still of its class.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: int = 255
    may_flip: bool = True

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns training images uint8 (N, C, h, w), training labels (N,), test images and test labels."""
        raise NotImplementedError

    def _build(self) -> None:
        images, labels, test_images, test_labels = self._read()
        train, val = self._split(labels)
        self.train_set = self._tensors(images[train], labels[train])
        self.val_set = self._tensors(images[val], labels[val]) if len(val) else None
        self.test_set = self._tensors(test_images, test_labels)

    def _tensors(self, images: Tensor, labels: Tensor) -> ImageTensors:
        return ImageTensors(images, labels, self.mean, self.std, self.white, self.image_size)

    def _batch_augmentation(self) -> Augment | None:
        return self._shift_flip if self.augment else None

    def _shift_flip(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Shifts by up to an eighth of the size, as in 4 of CIFAR's 32 pixels; what comes in is black."""
        images, labels = batch
        black = -torch.tensor(self.mean) / torch.tensor(self.std)
        return random_shift_flip(images, images.shape[-1] // 8, self.may_flip, black, generator), labels
