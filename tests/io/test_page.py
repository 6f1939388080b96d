"""What ``docs/files.md`` says of the bytes is so: its reader reads files, its example and its numbers are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune.io import compact, hub, pruned_state_dict, save_pruned
from lightning_prune.io.folder import FIELDS as FOLDER_FIELDS
from lightning_prune.io.format import packed
from lightning_prune.io.format.bitmask import encode
from tests.io.models import thin
from tests.io.tampering import Small

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text()


def reader() -> Any:
    """The page's own reader."""
    [code] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def read(" in block]
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # the page's, which is ours
    return namespace["read"]


class Tied(nn.Module):
    """Every kind of tensor that the page's reader knows: sparse, dense, tied, scaled, of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Embedding(30, 20), nn.Linear(20, 30, bias=False)
        self.decoder.weight = self.encoder.weight
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.small = Small()
        self.register_buffer("f16", torch.randn(3, 5, dtype=torch.float16))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("f64", torch.randn(7, dtype=torch.float64))


@pytest.mark.parametrize("values", [None, "float16", "int8"])
def test_the_reader_on_the_page_reads_files(tmp_path: Path, values: str | None) -> None:
    path = save_pruned(thin(Tied(), 0.8), tmp_path / "m.safetensors", values=values)
    found, expected = reader()(path), pruned_state_dict(path)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(found[key], tensor.numpy())


def test_the_example_on_the_page() -> None:
    [row] = re.findall(r"\| `\[(.*?)\]` \| `(.*?)` \| `(.*?)` \|", PAGE)
    tensor = torch.tensor([float(number) for number in row[0].split(",")])
    mask, values = encode(tensor) or (None, None)
    assert mask is not None
    assert bytes(mask.numpy()) == bytes.fromhex(row[1])
    assert values.numpy().tobytes() == bytes.fromhex(row[2])


def test_the_fields_and_limits_are_those_of_the_page() -> None:
    described = PAGE[PAGE.index("## One file") : PAGE.index("### Size")]
    for field in packed.FIELDS | {"sha256", packed.INDEX, packed.MASKS, packed.SCALES, packed.PACKED[1:]}:
        assert field in re.findall(r"[a-z_0-9]+", described)
    folder = PAGE[PAGE.index("## A folder") : PAGE.index("## Errors")]
    assert all(f"`{field}`" in folder for field in FOLDER_FIELDS)
    assert hub.COMPACT.format(name="resnet18") in PAGE
    limits = " ".join(PAGE.split())
    assert f"at most {packed.MAX_EXPANSION} times the file (64 times without zstd) and 1 MiB" in limits
    assert f"at most {packed.INDEX_FACTOR} times its compressed bytes and 64 KiB" in limits
    assert (packed.EXPANSION_ROOM, packed.INDEX_ROOM) == (2**20, 64 * 2**10)
    assert compact.DENSE_BYTES == 512 * 2**20
