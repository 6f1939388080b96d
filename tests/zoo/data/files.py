"""Small files in the formats of the real data sets."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lightning_prune.zoo.data.images import ImageTensors

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


def write_folder(root: Path, parts: dict[str, int]) -> None:
    for part, size in parts.items():
        for name in ("ant", "bee", "cat"):
            (root / part / name).mkdir(parents=True)
            for i in range(size):
                shade = np.full((20 + i, 24, 3), 40 * i, dtype=np.uint8)
                Image.fromarray(shade).save(root / part / name / f"{i}.png")
