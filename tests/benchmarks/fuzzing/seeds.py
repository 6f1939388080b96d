"""What is mutated: one small file or folder of every kind that is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lightning_prune.channels import prune_channels
from lightning_prune.io import load_pruned, pruned_state_dict, save_pretrained, save_pruned
from tests.io.tampering import OLD, Small

FILE = "model.safetensors"
CONFIG: dict[str, Any] = {
    "url": "", "input_size": (3, 8, 8), "num_classes": 4, "mean": (0.5,) * 3, "std": (0.5,) * 3,
    "first_conv": "conv1", "classifier": "fc",
}  # fmt: skip
default_cfgs = generate_default_cfgs({"fuzz_tiny": CONFIG})


class Tiny(nn.Module):
    """Built in a millisecond."""

    def __init__(self, num_classes: int = 4, in_chans: int = 3, width: int = 6, **_: Any) -> None:
        super().__init__()
        self.num_classes = self.num_features = num_classes
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


@register_model
def fuzz_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network of 500 weights."""
    model: nn.Module = build_model_with_cfg(Tiny, "fuzz_tiny", pretrained, **kwargs)
    return model


@dataclass(frozen=True)
class Seed:
    """Something that loads.

    Attributes:
        kind: its name in the table.
        files: {name: content}; of a single file, one.
        folder: whether the folder is read, or its one file.
        state: what is in it.
    """

    kind: str
    files: dict[str, bytes]
    folder: bool
    state: dict[str, Tensor]

    def model(self) -> nn.Module | None:
        """The module to fill, where the file has no timm name."""
        return Small() if "unnamed" in self.kind else None


def tiny(compact: bool = False, form: str = "eager") -> nn.Module:
    """A sparse network, by request with channels removed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("fuzz_tiny", width=12)
        if compact:
            keep = {"bn1": [0, 2, 3, 5, 7], "bn2": [1, 2, 3, 8]}
            prune_channels(model, torch.randn(2, 3, 8, 8), keep=keep, form=form, verify=False)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter[torch.rand(parameter.shape) < 0.8] = 0
    return model


def seeds() -> list[Seed]:
    """All of them, and none that does not load."""
    with TemporaryDirectory() as temporary:
        here = Path(temporary)
        paths = {
            "sparse": save_pruned(tiny(), here / "sparse" / FILE),
            "int8": save_pruned(tiny(), here / "int8" / FILE, values="int8"),
            "float16, zstd": save_pruned(tiny(), here / "float16" / FILE, values="float16", compress="zstd"),
            "compact": save_pruned(tiny(True), here / "compact" / FILE),
            "compact, rewritten graph": save_pruned(tiny(True, "graph"), here / "graph" / FILE),
            "unnamed": save_pruned(Small(), here / "unnamed" / FILE),
            "format 1, unnamed": OLD / "format1_small.safetensors",
            "format 2": OLD / "format2.safetensors",
            "folder": save_pretrained(tiny(), here / "folder"),
            "compact folder": save_pretrained(tiny(True), here / "compact folder"),
        }
        found = []
        for kind, path in paths.items():
            folder = path.is_dir()
            inside = [file for file in path.iterdir() if file.name != "README.md"] if folder else [path]
            files = {file.name if folder else FILE: file.read_bytes() for file in inside}
            seed = Seed(kind, files, folder, pruned_state_dict(path))
            load_pruned(path, seed.model())
            found.append(seed)
    return found
