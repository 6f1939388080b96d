"""zstd, where the extra of that name is installed. What comes out is bounded before anything is allocated."""

from __future__ import annotations

import numpy as np

from lightning_prune.io.format.container import Bytes

LEVEL = 12  # higher ones take many times as long for about one percent
REMEDY = 'Install it with: pip install "lightning-prune[zstd]".'


def compress(raw: Bytes) -> Bytes:
    """One frame that tells its content's size. ImportError where zstandard is missing."""
    import zstandard

    return np.frombuffer(zstandard.ZstdCompressor(level=LEVEL).compress(raw.tobytes()), np.uint8)


def decompress(frame: Bytes, size: int) -> Bytes:
    """The content, of exactly that size; the size that the frame claims is compared before it is allocated.

    Raises:
        ValueError: it is another size or damaged.
        ImportError: zstandard is missing.
    """
    import zstandard

    packed = frame.tobytes()
    try:
        if zstandard.frame_content_size(packed) != size:
            raise ValueError(f"it does not hold {size} bytes")
        raw = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(raw) != size:
        raise ValueError(f"it does not hold {size} bytes")
    return np.frombuffer(bytearray(raw), np.uint8)
