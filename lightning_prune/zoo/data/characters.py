"""Texts as windows of characters: a file of yours, such as enwik8, or the text that comes with every Python."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_prune.zoo.data.module import ReplayDataModule

ENWIK8 = "enwik8"


def help_topics() -> str:
    """Python's help topics in alphabetical order, the printable ASCII characters of them; it changes with Python."""
    return "".join(c for name in sorted(topics) for c in topics[name] if c == "\n" or " " <= c <= "~")


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a text, one behind the other, and the characters that follow on each of theirs.

    Args:
        text: uint8 [characters].
        length: of a window.
    """

    def __init__(self, text: Tensor, length: int) -> None:
        self.text, self.length = text, length

    def __len__(self) -> int:
        return max(0, (len(self.text) - 1) // self.length)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        window = self.text[index * self.length : (index + 1) * self.length + 1].long()
        return window[:-1], window[1:]


class CharactersDataModule(ReplayDataModule):
    """A text, byte by byte: (window, what follows on each of its bytes), both int64 [length].

    The first part trains, the next share ``val_split`` of it validates, the last ``val_split`` tests: with 0.05 the
    usual split of enwik8 into 90, 5 and 5 million bytes. Each byte is predicted once, from those before it in its
    window, so bits per character are an upper bound on those of a longer context.

    Args:
        root: a file, or a folder that holds ``enwik8`` (unpacked from mattmahoney.net/dc/enwik8.zip); None: the help
            topics of the Python that runs.
        length: of a window, in bytes.
        batch_size: windows in a batch; a last, smaller training batch is dropped, evaluation batches are not.
        num_workers: worker processes of each loader.
        val_split: share of the text to validate on, and as much to test on, in (0, 0.5).
        seed: seed of the order of training windows.

    Raises:
        ValueError: an argument out of its range.
    """

    num_classes = 256
    in_chans = 1

    def __init__(
        self, root: str | None = None, length: int = 64, batch_size: int = 16, num_workers: int = 0,
        val_split: float = 0.05, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers, val_split, seed)
        if length < 1 or not 0 < val_split < 0.5:
            raise ValueError(f"length={length} must be positive, and val_split={val_split} in (0, 0.5).")
        self.root, self.length = root, length

    def _read(self) -> Tensor:
        if self.root is None:
            content = help_topics().encode()
        else:
            path = Path(self.root)
            path = path / ENWIK8 if path.is_dir() else path
            if not path.is_file():
                raise FileNotFoundError(
                    f"there is no text {path.absolute()}. Pass root= a file, or a folder that holds {ENWIK8} (unpacked "
                    "from mattmahoney.net/dc/enwik8.zip), or none for Python's help topics."
                )
            content = path.read_bytes()
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    def _build(self) -> None:
        text = self._read()
        held = int(self.val_split * len(text))
        parts = text.split([len(text) - 2 * held, held, held])
        self.train_set, self.val_set, self.test_set = (Windows(part, self.length) for part in parts)
        if not len(self.val_set):
            raise ValueError(
                f"{self.root or 'the help topics'}: {held} bytes to validate on are no window of length={self.length} "
                "and the byte behind it. Give a longer text, a shorter length, or a larger val_split."
            )
