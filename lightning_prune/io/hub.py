"""Folders for the Hugging Face Hub: `save_pretrained` writes one, `push_to_hub` uploads it.

A sparse network is saved as timm saves its own, so that plain timm reads it. A compact one has the shapes that its plan
leaves, which no timm constructor builds: instead of the architecture, its config names the call that loads it, which is
what timm then shows as its error, before it builds or reads anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
from timm.models._hub import save_config_for_hf
from torch import nn

from lightning_prune.io import folder as reading
from lightning_prune.io.card import CARD, model_card
from lightning_prune.io.folder import CONFIG, PLAN, WEIGHTS
from lightning_prune.io.format.container import Container, fail
from lightning_prune.io.format.header import METADATA_KEY
from lightning_prune.io.save import Content, write_file

COMPACT = "{name}, made compact: load it with lightning_prune.load_pruned('hf-hub:owner/name', or this folder)"


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float | str] | None = None,
) -> Path:
    """Saves a timm model as a folder for the Hub, which `load_pruned` reads.

    A sparse (or dense) network becomes timm's own ``config.json`` and ``model.safetensors``:
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads it too. Of a compact one, ``pruning_plan.json``
    lies beside them, and plain timm ends with an error that names `load_pruned`. Weights are stored dense: for the
    small file of a sparse network, take `save_pruned`. A model card, ``README.md``, tells what was removed.

    Args:
        model: a timm model, or a LightningModule that holds one.
        folder: where the files go; it is created. Files of these names are replaced, others stay.
        name, kwargs: as for `save_pruned`.
        metrics: more for the model card, {what: value}, such as an accuracy that you measured.

    Returns:
        The folder.

    Raises:
        PrunedFileError: if there is a file of that name, or the model could not be rebuilt by timm. Nothing is written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        fail(folder, "it is a file", "Give the path of a folder, or use save_pruned for a file.")
    content = Content.of(model, folder, name, kwargs)
    if content.name is None:
        fail(folder, "a folder for the Hub takes a timm model", "Give its name=, or use save_pruned.")
    with TemporaryDirectory() as temporary:
        files = _files(content, folder, Path(temporary), metrics or {})
    for file, raw in files.items():
        write_file(folder / file, raw)
    if PLAN not in files:
        (folder / PLAN).unlink(missing_ok=True)
    return folder


def _files(content: Content, folder: Path, scratch: Path, metrics: Mapping[str, float | str]) -> dict[str, bytes]:
    """{name: bytes}, the config last: it makes the rest valid."""
    keys = {key: key for key in content.state} | content.aliases
    # safetensors takes no two views of one storage
    weights = safetensors.torch.save({key: content.state[own].clone() for key, own in keys.items()}, {"format": "pt"})
    (scratch / WEIGHTS).write_bytes(weights)
    try:
        save_config_for_hf(content.network, str(scratch / CONFIG), model_args=content.kwargs)
    except Exception as error:  # timm raises what it likes
        reason = f"{type(error).__name__}: {error}"
        fail(folder, f"timm cannot describe the model ({reason:.300})", "Use save_pruned instead.")
    config = json.loads((scratch / CONFIG).read_text())
    plan = json.dumps(content.plans, allow_nan=False).encode() if content.plans else b""
    if content.plans:
        config["architecture"] = COMPACT.format(name=content.name)
    config[METADATA_KEY] = content.description() | {"format": reading.FORMAT}
    container = Container.open(scratch / WEIGHTS)
    data = np.frombuffer(weights, np.uint8)[container.start :]
    config[METADATA_KEY]["sha256"] = reading.digest(reading.hashed_before_weights(config, plan, container), data.data)
    card = model_card(content, len(weights) + len(plan), metrics)
    files = {CARD: card.encode(), WEIGHTS: weights} | ({PLAN: plan} if plan else {})
    return files | {CONFIG: json.dumps(config, indent=2, allow_nan=False).encode()}


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float | str] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add a pruned model",
    api: Any = None,
) -> Any:
    """Uploads the folder of `save_pretrained` to the Hugging Face Hub; the repository is created if there is none.

    A model card that is there stays as it is.

    Args:
        model, name, kwargs, metrics: as for `save_pretrained`.
        repo_id: ``owner/name``.
        private: whether a new repository is private; None is the owner's default.
        token: a write token; by default the one that ``hf auth login`` stored.
        revision: the branch; by default main.
        commit_message: of the upload.
        api: a ``huggingface_hub.HfApi`` to use instead of a new one.

    Returns:
        What ``HfApi.upload_folder`` returns, a CommitInfo.

    Raises:
        PrunedFileError: as `save_pretrained`, before anything is created or uploaded.
        what huggingface_hub raises.
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token, library_name="lightning_prune")
    with TemporaryDirectory() as temporary:
        path = save_pretrained(model, Path(temporary) / "model", name=name, kwargs=kwargs, metrics=metrics)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        card = path / CARD
        card.write_text(card.read_text().replace("owner/name", repo_id))
        has_card = api.file_exists(repo_id=repo_id, filename=CARD, revision=revision)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            revision=revision,
            commit_message=commit_message,
            ignore_patterns=[CARD] if has_card else None,
            delete_patterns=None if (path / PLAN).exists() else [PLAN],
        )
