"""Pruned models as plain files: safetensors and JSON, checked before anything is allocated; never pickle."""

from lightning_prune.io.pruned import load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.sparsefile import PrunedFileError

__all__ = ["PrunedFileError", "load_pruned", "pruned_state_dict", "save_pruned"]
