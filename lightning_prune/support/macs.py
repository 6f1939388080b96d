"""Counting what one call of a network costs, in all and by weight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
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
    with mode(network, False), without_hooks(network), _counted() as counter:
        network(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


@contextlib.contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """Counts what runs inside. The counter knows matrix products, and nothing of fused attention and encoder layers."""
    counter, fused = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class MacsByWeight(TorchDispatchMode):
    """Counts MACs of what runs under `macs_by_weight`.

    Attributes:
        total: of all that ran.
        by_weight: of the products in which each weight is an operand, over all of its uses; by name.
    """

    def __init__(self, weights: Mapping[str, Tensor], counter: FlopCounterMode) -> None:
        super().__init__()
        self.by_weight = dict.fromkeys(weights, 0)
        self._counter, self._copies = counter, list[Tensor]()
        self._places = [(w.data_ptr(), w.data_ptr() + w.numel() * w.element_size(), n) for n, w in weights.items()]

    @property
    def total(self) -> int:
        return int(self._counter.get_total_flops()) // 2

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.total
        out = func(*args, **(kwargs or {}))
        operands = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name = next((found for x in operands if (found := self._owner(x)) is not None), None)
        if name is not None:
            self.by_weight[name] += self.total - before
            if len(operands) == 1 and isinstance(out, Tensor) and self._owner(out) is None:
                # Made of the weight alone, as autocast does. It is held, so that nothing else takes its place.
                self._copies.append(out)
                self._places.append((out.data_ptr(), out.data_ptr() + out.numel() * out.element_size(), name))
        return out

    def _owner(self, x: Tensor) -> str | None:
        """The weight that a tensor is, or is a view of."""
        at = x.data_ptr()
        return next((name for start, end, name in self._places if start <= at < end), None)


@contextlib.contextmanager
def macs_by_weight(weights: Mapping[str, Tensor]) -> Iterator[MacsByWeight]:
    """Inside, multiply-accumulates are counted, in all and for each of some weights; a tied one once, over all uses.

    Not in inference mode.

    Args:
        weights: dense tensors that products use as they are, cast, or viewed, by name.
    """
    with _counted() as counter, MacsByWeight(weights, counter) as found:
        yield found
