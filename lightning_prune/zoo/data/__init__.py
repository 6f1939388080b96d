"""LightningDataModules for image classification, and loaders whose batches a resumed run sees again."""

from lightning_prune.zoo.data.datasets import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
)
from lightning_prune.zoo.data.loading import EpochSampler, ReplayLoader
from lightning_prune.zoo.data.module import ImageDataModule

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "EpochSampler",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ReplayLoader",
]
