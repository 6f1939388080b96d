"""Dead channels."""
from __future__ import annotations
import torch
from torch import Tensor, nn
from lightning_prune.channels.graph import ChannelGraph

def dead_classes(model: nn.Module, graph: ChannelGraph) -> Tensor:
    raise NotImplementedError
