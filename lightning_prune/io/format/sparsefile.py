"""A pruned file of any format: its header checked, its tensors read.

Reading trusts nothing. `read_header` checks every length, offset, shape and count against the size of the file before
any tensor is allocated. Nothing is ever unpickled.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lightning_prune.io.format import legacy, packed
from lightning_prune.io.format.container import Container, fail, parse_json
from lightning_prune.io.format.header import METADATA_KEY, Header
from lightning_prune.support.schema import is_int, is_object


def read_header(path: Path) -> Header:
    """Reads and checks everything a file says about itself, without allocating a tensor.

    Raises:
        PrunedFileError: if the file is a folder or any check fails.
        FileNotFoundError: if there is no such file.
    """
    container = Container.open(path)
    if not is_object(container.metadata) or not isinstance(container.metadata.get(METADATA_KEY), str):
        fail(
            path,
            "it was not written by save_pruned",
            "A plain safetensors file loads with safetensors.torch.load_file.",
        )
    info = parse_json(path, container.metadata[METADATA_KEY], "the description of the model")
    number = info.get("format")
    if not is_int(number) or number not in (*legacy.FORMATS, packed.FORMAT):
        fail(path, f"it has format {number!r}, not 1, 2 or {packed.FORMAT}", "A newer lightning_prune may read it.")
    read = packed.read_description if number == packed.FORMAT else legacy.read_description
    return read(container, info)


def read_tensors(header: Header) -> dict[str, Tensor]:
    """Reads every tensor, dense, bit for bit as it is in the file; aliases are the same tensor object.

    Raises:
        PrunedFileError: if the content is not as the header said, or not what was saved.
    """
    out = header.read()
    return out | {key: out[target] for key, target in header.aliases.items()}
