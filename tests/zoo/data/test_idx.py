"""Files of MNIST's format: read exactly, or named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_prune.zoo.data.images import read_idx
from tests.zoo.data.files import idx_bytes, write_fashion


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
