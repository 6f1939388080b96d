"""Pruned models as plain files: safetensors and JSON, checked before anything is allocated; never pickle."""

from lightning_prune.errors import PrunedFileError
from lightning_prune.io.pruned import load_pruned, pruned_state_dict, save_pruned

__all__ = ["PrunedFileError", "load_pruned", "pruned_state_dict", "save_pruned"]
