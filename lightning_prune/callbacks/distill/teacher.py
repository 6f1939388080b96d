"""Where a teacher comes from, how it is called, and how a resumed run finds the same one again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from lightning_prune.io import load_pruned
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import plan_of

FILE = "teacher-{}.safetensors"


def find_teacher(
    source: str | Path, checkpoint: str | None, pretrained: bool, kwargs: Mapping[str, Any], student: nn.Module
) -> nn.Module:
    """A teacher by a file of `save_pruned`, or by a timm name.

    Args:
        source: the file, or the name.
        checkpoint: weights of the timm model, as ``timm.create_model(checkpoint_path=...)`` reads them.
        pretrained: take timm's own weights instead.
        kwargs: other arguments of ``timm.create_model``; the number of classes and of input channels are the student's.
        student: a timm model tells them.

    Raises:
        ValueError: neither a file nor a timm model, or a timm model without weights.
    """
    name = str(source)
    if Path(name).is_file():
        return load_pruned(name)
    if not timm.is_model(name):
        raise ValueError(
            f"teacher={name!r} is neither a file nor a timm model: give a module, the path of a file that save_pruned "
            "wrote, or a name of timm.list_models()."
        )
    if checkpoint is None and not pretrained:
        raise ValueError(
            f"teacher={name!r} would start at random, which teaches nothing: give checkpoint= (a file of its weights), "
            "or pretrained=True for timm's own."
        )
    own = {key: getattr(student, key, None) for key in ("num_classes", "in_chans")}
    given = {key: value for key, value in own.items() if isinstance(value, int)} | dict(kwargs)
    model: nn.Module = timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint or "", **given)
    return model


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over a module's tensors, their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if torch.is_tensor(tensor):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_copy(teacher: nn.Module, path: Path) -> None:
    """Its tensors as a safetensors file; an existing one of that name is the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        temporary = path.with_suffix(".tmp")
        safetensors.torch.save_model(teacher, str(temporary))
        temporary.replace(path)


def read_copy(student: nn.Module, path: Path, state: Mapping[str, Any]) -> nn.Module:
    """The teacher that `write_copy` wrote, built from the student as it is now: compact by another plan, perhaps.

    Args:
        student: the network whose copy the teacher was.
        path: the file.
        state: ``plan`` (JSON, or None) of the teacher, and its ``fingerprint``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold that teacher.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"The run that this checkpoint is of was taught by a copy of the network as it began, kept in {path}, "
            "which is not there. Give teacher_dir= the folder that it is in now."
        )
    teacher = deepcopy(student)
    if (now := plan_of(teacher)) is not None:
        now.undo(teacher)
    if state["plan"] is not None:
        PruningPlan.from_json(state["plan"]).apply(teacher)
    safetensors.torch.load_model(teacher, str(path))
    if fingerprint(teacher) != state["fingerprint"]:
        raise ValueError(
            f"{path} does not hold the teacher that this checkpoint's run had. Give teacher_dir= its folder."
        )
    return teacher
