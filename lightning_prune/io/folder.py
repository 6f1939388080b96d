"""Reading a folder that `save_pretrained` wrote: timm's two files, and of a compact model its plan beside them.

``config.json`` is timm's, with one more field, ``lightning_prune``, that holds what a single file's description holds
and a hash over the config (without the hash), the weights and the plan. timm skips fields that it does not know.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_prune.io.format.container import MAX_HEADER_BYTES, Container, fail, parse_json, regular_size
from lightning_prune.io.format.header import METADATA_KEY, canonical
from lightning_prune.io.recipe import MAX_TEXT
from lightning_prune.support.schema import is_int, is_list, is_object, is_text

FORMAT = 1
CONFIG, WEIGHTS, PLAN = "config.json", "model.safetensors", "pruning_plan.json"
HUB, LOCAL = "hf-hub:", "local-dir:"
FIELDS = {"format", "name", "kwargs", "versions", "sparsity", "sha256"}
TEXTS = ("interpolation", "crop_mode")
NUMBERS = ("input_size", "test_input_size", "mean", "std", "crop_pct", "test_crop_pct")
LABELS = ("label_names", "label_descriptions")


@dataclass(frozen=True)
class Folder:
    """A folder whose description was checked.

    Attributes:
        info: name, kwargs, versions, sparsity, plans and format.
        weights: the weights' file, its header checked.
        data: timm's fields on how images are prepared and what the classes are called.
        size: bytes of the weights and the plan.
    """

    path: Path
    info: dict[str, Any]
    weights: Container
    data: dict[str, Any]
    size: int
    hashed: bytes  # what comes before the weights' own bytes in the hash
    sha256: str

    def read(self) -> dict[str, Tensor]:
        """Reads every tensor; PrunedFileError if the content is not what was saved."""
        data = self.weights.read()
        if digest(self.hashed, data.data) != self.sha256:
            fail(self.path, "its files do not have the hash they were saved with, or do not belong together")
        return dict(self.weights.tensors(data))


def open_folder(path: Path) -> Folder:
    """Checks what a folder says of itself, and that its files are its own.

    Raises:
        PrunedFileError: any check fails.
    """
    raw = _read(path, CONFIG, "Give the folder that save_pretrained wrote, or a file.")
    config = parse_json(path / CONFIG, raw, "timm's config")
    info = config.get(METADATA_KEY)
    if info is None:
        remedy = f"Plain timm loads it: timm.create_model({LOCAL + str(path)!r}, pretrained=True)."
        fail(path / CONFIG, "it was not written by save_pretrained", remedy)
    if not is_object(info, FIELDS) or not is_int(info["format"]):
        fail(path / CONFIG, f"its field {METADATA_KEY!r} is malformed")
    if info["format"] != FORMAT:
        fail(path / CONFIG, f"it has format {info['format']}, not {FORMAT}", "A newer lightning_prune may read it.")
    sha256 = info.pop("sha256")
    if info["name"] is None:
        fail(path / CONFIG, "it has no timm name")
    plan = _read(path, PLAN) if (path / PLAN).is_symlink() or (path / PLAN).exists() else b""
    weights = Container.open(_own(path, WEIGHTS))
    size = weights.start + weights.size + len(plan)
    hashed = hashed_before_weights(config, plan, weights)
    info["plans"] = parse_json(path / PLAN, plan, "the pruning plans") if plan else {}
    return Folder(path, info, weights, _data(path, config), size, hashed, str(sha256))


def hashed_before_weights(config: dict[str, Any], plan: bytes, weights: Container) -> bytes:
    """What the hash covers beside the bytes of the tensors; `config` without its hash."""
    entries = {
        name: [list(kind.shape), str(kind.dtype), weights.places[name]] for name, kind in weights.entries.items()
    }
    return canonical({"config": config, "plan": digest(plan), "entries": entries})


def digest(*parts: bytes | memoryview) -> str:
    """The SHA-256 of bytes, one part after another."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.hexdigest()


def _own(path: Path, name: str, remedy: str = "It is incomplete: get it again.") -> Path:
    """A file of the folder, by its real place. A link may lead to another file of it, or into a Hub cache's blobs."""
    try:
        real = Path(os.path.realpath(path / name, strict=True))
    except OSError as error:
        fail(path, f"it has no {name} that can be read ({error.strerror})", remedy)
    home = Path(os.path.realpath(path))
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if real.parent not in allowed:
        fail(path / name, f"it is a link to {real}, outside of the folder", "Put the file itself there.")
    return real


def _read(path: Path, name: str, remedy: str = "It is incomplete: get it again.") -> bytes:
    file = _own(path, name, remedy)
    size = regular_size(file)
    if size > MAX_HEADER_BYTES:
        fail(path / name, f"it is {size} bytes long, more than the {MAX_HEADER_BYTES} a pruned model may need")
    with file.open("rb") as opened:
        return opened.read(MAX_HEADER_BYTES + 1)


def _data(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's fields on data, in timm's types; PrunedFileError naming the first that is not plain."""
    inner = config.get("pretrained_cfg", {})
    if not is_object(inner):
        fail(path / CONFIG, "its field 'pretrained_cfg' is not an object")
    told = {**inner, **{key: config[key] for key in LABELS if key in config}}
    found = {key: told[key] for key in (*TEXTS, *NUMBERS, *LABELS) if told.get(key) is not None}
    for key, value in found.items():
        if key in TEXTS:
            ok = is_text(value, MAX_TEXT)
        elif key in NUMBERS:
            ok = is_list(value, _is_number, 16) or _is_number(value)
        else:
            ok = is_list(list(value.values()) if is_object(value) else value, lambda item: isinstance(item, str))
        if not ok:
            fail(path / CONFIG, f"its field {key!r} is not what timm has there")
    return {key: tuple(value) if is_list(value) and key in NUMBERS else value for key, value in found.items()}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 2**31


def download(repo: str) -> Path:
    """Downloads the files of ``owner/name`` or ``owner/name@revision`` from the Hub, and returns their folder.

    Raises:
        what huggingface_hub raises if there is no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = repo.partition("@")
    files = [CONFIG, WEIGHTS, PLAN]
    return Path(
        snapshot_download(name, revision=revision or None, allow_patterns=files, library_name="lightning_prune")
    )
