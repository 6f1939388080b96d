"""Pruned models as plain files: safetensors and JSON, checked before anything is allocated; never pickle."""

from lightning_prune.errors import PrunedFileError
from lightning_prune.io.hub import push_to_hub, save_pretrained
from lightning_prune.io.load import load_pruned, pruned_info, pruned_state_dict
from lightning_prune.io.save import save_pruned

__all__ = [
    "PrunedFileError",
    "load_pruned",
    "pruned_info",
    "pruned_state_dict",
    "push_to_hub",
    "save_pretrained",
    "save_pruned",
]
