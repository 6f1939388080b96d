"""Texts: which bytes train, validate and test, and what stands in a window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_prune.zoo.data import CharactersDataModule
from lightning_prune.zoo.data.characters import help_topics


def test_every_byte_of_a_part_is_predicted_once(tmp_path: Path) -> None:
    text = bytes(range(256)) * 4
    (tmp_path / "enwik8").write_bytes(text)
    module = CharactersDataModule(str(tmp_path), length=10, val_split=0.1, batch_size=8)  # a folder that holds it
    module.setup()
    whole = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    begin = 0
    for part, size in ((module.train_set, 820), (module.val_set, 102), (module.test_set, 102)):
        windows = [part[i] for i in range(len(part))]
        assert len(windows) == (size - 1) // 10
        x, y = (torch.cat(side) for side in zip(*windows, strict=True))
        assert x.equal(whole[begin : begin + len(x)])
        assert y.equal(whole[begin + 1 : begin + 1 + len(x)])
        begin += size
    x, y = next(iter(module.train_dataloader()))
    assert (x.shape, x.dtype, y.shape) == ((8, 10), torch.int64, (8, 10))
    again = CharactersDataModule(str(tmp_path / "enwik8"), length=10, val_split=0.1, batch_size=8)
    again.setup()
    assert next(iter(again.train_dataloader()))[0].equal(x)


def test_without_a_file_it_is_the_text_that_comes_with_python() -> None:
    module = CharactersDataModule()
    module.setup()
    start = module.train_set[0][0]
    assert bytes(start.tolist()).decode() == help_topics()[:64]


def test_what_is_not_there_or_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no text .*enwik8\. Pass root= a file, or a folder"):
        CharactersDataModule(str(tmp_path)).setup()
    (tmp_path / "short").write_text("short")
    with pytest.raises(ValueError, match="0 bytes to validate on are no window of length=64"):
        CharactersDataModule(str(tmp_path / "short")).setup()
    with pytest.raises(ValueError, match=r"length=0 must be positive, and val_split=0.05 in \(0, 0.5\)"):
        CharactersDataModule(length=0)
