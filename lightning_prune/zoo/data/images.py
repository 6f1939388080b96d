"""Small images as tensors: read from idx files, held in memory, normalised and augmented a batch at a time."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset


def read_idx(path: str | Path) -> Tensor:
    """Reads an idx file of unsigned bytes (the format of MNIST and its relatives), gzipped or not.

    Args:
        path: the file; a name ending in ``.gz`` is decompressed.

    Returns:
        The array, uint8, in the shape the file declares.

    Raises:
        ValueError: if the file is not idx, holds another type, or its length is not what its header declares.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
                raise ValueError(f"{path} is not an idx file of unsigned bytes (its first bytes are {magic.hex()!r})")
            sizes = file.read(4 * magic[3])
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            data = file.read()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); get it again") from error
    if len(shape) != magic[3] or len(data) != math.prod(shape):
        raise ValueError(f"{path} declares shape {shape} but holds {len(data)} bytes of data; get it again")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape) if data else torch.empty(shape).byte()


def random_shift_flip(images: Tensor, shift: int, flip: bool, fill: Tensor, generator: torch.Generator) -> Tensor:
    """A batch (N, C, H, W) with each image shifted by up to ``shift`` pixels both ways and, to ``flip``, half mirrored.

    What comes in has the values ``fill``, shape (C,). The result is a function of the generator.
    """
    n, c, h, w = images.shape
    padded = fill.to(images).view(1, c, 1, 1).repeat(n, 1, h + 2 * shift, w + 2 * shift)
    padded[:, :, shift : shift + h, shift : shift + w] = images
    top, left = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator)
    columns = torch.arange(w).expand(n, w)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = top + torch.arange(h), left + columns
    moved = padded[torch.arange(n).view(n, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return moved.permute(0, 3, 1, 2).contiguous()


class ImageTensors(Dataset[tuple[Tensor, Tensor]]):
    """Small images held in memory as bytes, handed out normalised, a whole batch with one indexing operation.

    Bytes stay bytes until a batch is asked for: 60,000 images resized to 224 pixels in float32 would need 12 GB.

    Args:
        images: uint8, shape (N, C, h, w).
        labels: class indices, shape (N,).
        mean: mean of each channel, of pixels scaled to [0, 1].
        std: standard deviation of each channel, same scale.
        white: the pixel value that becomes 1.0.
        image_size: height and width of the result, bilinear; None keeps (h, w).
    """

    returns_batches = True
    """Tells `lightning_prune.zoo.data.loading.ReplayLoader` that nothing is left to collate."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        white: int = 255,
        image_size: int | None = None,
    ) -> None:
        self.images = images
        self.labels = labels.long()
        self.image_size = image_size
        self.scale = (1.0 / (white * torch.tensor(std))).view(1, -1, 1, 1)
        self.offset = -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Returns the batch ``(images float32 (B, C, H, W), labels int64 (B,))``; torch's loaders call this."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen].float()
        if self.image_size is not None and images.shape[-2:] != (self.image_size, self.image_size):
            shrinks = min(images.shape[-2:]) > self.image_size
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=shrinks)
        return images * self.scale + self.offset, self.labels[chosen]
