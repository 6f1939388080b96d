"""LightningDataModules for image classification and for texts, and loaders whose batches a resumed run sees again."""

from lightning_prune.zoo.data.characters import CharactersDataModule
from lightning_prune.zoo.data.datasets import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
)
from lightning_prune.zoo.data.loading import EpochSampler, ReplayLoader
from lightning_prune.zoo.data.module import ImageDataModule, ReplayDataModule

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CharactersDataModule",
    "DigitsDataModule",
    "EpochSampler",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ReplayDataModule",
    "ReplayLoader",
]
