"""Counting what one call of a network costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.support.modes import mode, split_input, without_hooks


@torch.no_grad()
def count_macs(network: nn.Module, example_input: Any) -> int:
    """Multiply-accumulates of one call in eval mode, by PyTorch's own counter (half of the operations it counts).

    Args:
        network: as it stands; nothing of it changes.
        example_input: the one argument, a tuple of positional ones, or a dict of keyword ones; its batch counts.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(device), tuple(split_input(example_input)))
    # The counter knows matrix products, and nothing of the CPU's fused attention, nor of fused encoder layers.
    counter, fused = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with mode(network, False), without_hooks(network), sdpa_kernel(SDPBackend.MATH), counter:
            network(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2
