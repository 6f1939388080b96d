"""LightningDataModules for image classification: digits (bundled), Fashion-MNIST, CIFAR-10/100, image folders.

All take the same arguments, know their ``num_classes`` and ``in_chans``, split by a seed, and hand out training batches
that a resumed run sees again (see `lightning_prune.zoo.data.loading`). torchvision is imported only by the data sets
that need it. A data set that is not there raises `FileNotFoundError` and says where it was looked for and how to get
it.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Subset

from lightning_prune.zoo.data.images import read_idx
from lightning_prune.zoo.data.loading import stratified_split
from lightning_prune.zoo.data.module import ImageDataModule, InMemoryDataModule

DIGITS_FILE = Path(__file__).parent.parent / "assets" / "digits.safetensors"
FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


class DigitsDataModule(InMemoryDataModule):
    """The 1797 handwritten digits that come with the package: 8x8 grey images of 10 classes, no download.

    The test part is the same fifth of the samples, whatever the seed; ``val_split`` divides the rest.

    Data: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits (its test set), UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0, as distributed with scikit-learn; stored as
    safetensors, otherwise unchanged. Arguments are those of `ImageDataModule`.
    """

    num_classes = 10
    in_chans = 1
    mean, std, white, may_flip = (0.305,), (0.376,), 16, False

    def __init__(self, *, image_size: int | None = 32, val_split: float = 0.2, **kwargs: Any) -> None:
        super().__init__(image_size=image_size, val_split=val_split, **kwargs)

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tensors = load_file(DIGITS_FILE)
        images, labels = tensors["images"].unsqueeze(1), tensors["labels"].long()
        rest, test = stratified_split(labels, 0.2, seed=1797)
        return images[rest], labels[rest], images[test], labels[test]


class FashionMNISTDataModule(InMemoryDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images, 28x28, grey, 10 classes.

    Args:
        root: folder that holds ``FashionMNIST/raw`` (torchvision's layout), or the four idx files themselves.
            Debian's ``dataset-fashion-mnist`` is found as well.
        download: fetch the files into ``root`` with torchvision if they are nowhere.
        **kwargs: the arguments of `ImageDataModule`.
    """

    num_classes = 10
    in_chans = 1
    mean, std = (0.2860,), (0.3530,)

    def __init__(self, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.download = download

    def _folders(self) -> list[Path]:
        return [Path(self.root) / "FashionMNIST" / "raw", Path(self.root), FASHION_MNIST_DEBIAN]

    def _find(self) -> dict[str, Path] | None:
        """The four files by name, all from the first folder that has them all."""
        names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        for folder in self._folders():
            found = {n: p for n in names for p in (folder / f"{n}.gz", folder / n) if p.is_file()}
            if len(found) == len(names):
                return found
        return None

    def prepare_data(self) -> None:
        """Downloads the files if that was asked for and they are nowhere."""
        if self.download and self._find() is None:
            from torchvision.datasets import FashionMNIST

            FashionMNIST(self.root, download=True)

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        files = self._find()
        if files is None:
            looked = ", ".join(str(folder) for folder in self._folders())
            raise FileNotFoundError(
                f"Fashion-MNIST is not there. Looked for its four idx files (.gz or not) in: {looked}. "
                "Pass root= to point at them, download=True to fetch them with torchvision, or install Debian's "
                "package dataset-fashion-mnist."
            )
        train, test = (
            (read_idx(files[f"{part}-images-idx3-ubyte"]), read_idx(files[f"{part}-labels-idx1-ubyte"]))
            for part in ("train", "t10k")
        )
        for images, labels in (train, test):
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                folder, sizes = next(iter(files.values())).parent, (tuple(images.shape), tuple(labels.shape))
                raise ValueError(f"{folder}: {sizes[0]} images and {sizes[1]} labels do not match")
        return train[0].unsqueeze(1), train[1].long(), test[0].unsqueeze(1), test[1].long()


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32, colour, 10 classes.

    Args:
        root: folder that holds torchvision's ``cifar-10-batches-py``.
        download: fetch it with torchvision if it is not there.
        **kwargs: the arguments of `ImageDataModule`.
    """

    num_classes = 10
    in_chans = 3
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    _dataset = "CIFAR10"

    def __init__(self, root: str = "data", download: bool = False, augment: bool = True, **kwargs: Any) -> None:
        super().__init__(augment=augment, **kwargs)
        self.root = root
        self.download = download

    def _open(self, train: bool, download: bool = False) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, self._dataset)(self.root, train=train, download=download)

    def prepare_data(self) -> None:
        """Downloads the data if that was asked for and it is not there."""
        if self.download:
            self._open(train=True, download=True)

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tensors: list[Tensor] = []
        for train in (True, False):
            try:
                data = self._open(train)
            except RuntimeError as error:
                raise FileNotFoundError(
                    f"{self._dataset} is not (whole) in {Path(self.root).absolute()}: {error} Pass root= to point at "
                    "the folder that holds torchvision's copy, or download=True to fetch it."
                ) from error
            tensors += [torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)]
        return tensors[0], tensors[1], tensors[2], tensors[3]


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: as `CIFAR10DataModule`, with 100 classes, in torchvision's ``cifar-100-python``."""

    num_classes = 100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    _dataset = "CIFAR100"


class ImageFolderDataModule(ImageDataModule):
    """A folder of images, ``<root>/train/<class>/*.jpg``, with timm's standard transforms for ImageNet.

    Validation reads ``<root>/val``, or holds out ``val_split`` of the training images when there is no such folder;
    test reads ``<root>/test``, or the validation images when there is no such folder. Random crops come from global
    random state (``seed_everything``): the order of a resumed run is replayed, its crops are not.

    Args:
        root: folder with ``train`` and, if there is one, ``val`` and ``test``.
        color_jitter: strength of timm's colour jitter on training images; 0 for crops and mirror images alone.
        **kwargs: the arguments of `ImageDataModule`.
    """

    in_chans = 3

    def __init__(
        self, root: str, image_size: int = 224, augment: bool = True, color_jitter: float = 0.4, **kwargs: Any
    ) -> None:
        super().__init__(image_size=image_size, augment=augment, **kwargs)
        self.root = root
        self.color_jitter = color_jitter

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of class folders in ``<root>/train``."""
        from torchvision.datasets.folder import find_classes

        return len(find_classes(self._folder("train"))[0])

    def _folder(self, part: str) -> Path:
        folder = Path(self.root) / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder.absolute()}. Pass root= a folder that holds train/<class>/ (and, if there "
                "are such parts, val/<class>/ and test/<class>/) with image files."
            )
        return folder

    def _open(self, part: str) -> Any:
        """The images of a part in order, as for evaluation; None if there is no such part."""
        from torchvision.datasets import ImageFolder

        if part != "train" and not (Path(self.root) / part).is_dir():
            return None
        return ImageFolder(str(self._folder(part)), create_transform(self.image_size))

    def _build(self) -> None:
        plain = self._open("train")
        train, labels = copy(plain), torch.tensor(plain.targets)
        if self.augment:
            train.transform = create_transform(
                self.image_size, is_training=True, color_jitter=self.color_jitter or None
            )
        self.val_set, self.test_set = self._open("val"), self._open("test")
        if self.val_set is None:
            chosen, held_out = self._split(labels)
            self.val_set = Subset(plain, held_out.tolist()) if len(held_out) else None
        else:
            chosen = self._pick(torch.arange(len(labels)), labels)
        self.train_set = Subset(train, chosen.tolist())
        if self.test_set is None:
            self.test_set = self.val_set
