"""A model's tensors as a check wants them, each made when it is asked for and dropped after use.

A check needs the model masked and sliced, and may need it in float64. Whole copies of it would take several times the
model's memory; made one by one, they take no more than the largest tensor.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node
from torch.utils import _pytree as pytree

from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.tensors import state_tensors, take

SMALL = 1 << 25
"""Bytes (32 MiB) that a tensor may take in float64 whatever the size of the model."""

Reader = Callable[[str], Tensor]
"""Makes the tensor of a name in the state dict."""

Step = Callable[[str, Tensor], Tensor]
"""What happens to a tensor of a name on the way; it may not change the tensor that it is given."""


def reader(model: nn.Module, *steps: Step) -> Reader:
    """Reads a model's tensors through some steps."""
    tensors = state_tensors(model)
    return through(lambda name: tensors[name].detach(), *steps)


def remembered(read: Reader) -> Reader:
    """Makes vectors once: a check asks for each several times, and they are small beside the rest."""
    known: dict[str, Tensor] = {}

    def again(name: str) -> Tensor:
        if name in known:
            return known[name]
        tensor = read(name)
        return known.setdefault(name, tensor) if tensor.ndim < 2 else tensor

    return again


def through(read: Reader, *steps: Step) -> Reader:
    """What a reader makes, through more steps."""

    def onward(name: str) -> Tensor:
        tensor = read(name)
        for step in steps:
            tensor = step(name, tensor)
        return tensor

    return onward


def fresh(name: str, tensor: Tensor) -> Tensor:
    """A copy, as a train-mode run writes statistics in place."""
    return tensor.clone()


def cast(dtype: torch.dtype | None) -> Step:
    """To another dtype; None leaves all as they are."""
    return lambda name, tensor: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def masked(plan: PruningPlan, dtype: torch.dtype | None, only: Collection[str] | None = None) -> Step:
    """Every removed entry is zero: outputs of the removed channels and what consumes them."""

    stays = Stays()

    def step(name: str, tensor: Tensor) -> Tensor:
        if name not in plan.cuts or not plan.cuts[name].kept or (only is not None and name not in only):
            return cast(dtype)(name, tensor)
        cut, value = plan.cuts[name], tensor.to(dtype) if dtype is not None else tensor
        if value.ndim == 1:
            return torch.where(stays.mask(cut.kept[0], cut.shape[0]).to(value.device), value, 0)
        shapes = {dim: [-1 if d == dim else 1 for d in range(value.ndim)] for dim in cut.kept}
        left = [stays.mask(kept, cut.shape[dim]).view(shapes[dim]).to(value) for dim, kept in cut.kept.items()]
        if not bool(value.sum().isfinite()):
            for factor in left:
                value = value.masked_fill(factor == 0, 0)
            return value
        if value.ndim > 2:  # small beside the kernels
            left = [functools.reduce(torch.mul, left)]
        for n, factor in enumerate(left):  # several times as fast as filling
            value = value.mul_(factor) if n else value * factor
        return value

    return step


def sliced(plan: PruningPlan, dtype: torch.dtype | None) -> Step:
    """Every removed entry is gone."""
    stays = Stays()

    def step(name: str, tensor: Tensor) -> Tensor:
        if name in plan.cuts:
            cut = plan.cuts[name]
            tensor = take(tensor, {dim: stays.indices(kept, cut.shape[dim]) for dim, kept in cut.kept.items()})
        return cast(dtype)(name, tensor)

    return step


class Stays:
    """Kept indices as masks, made once for each tuple: most are those of several tensors of a plan."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Tensor] = {}
        self._indices: dict[tuple[int, int], Tensor] = {}

    def mask(self, kept: tuple[int, ...], size: int) -> Tensor:
        """Bool [size]. The tuple has to live as long as this does."""
        key = (id(kept), size)
        if key not in self._known:
            self._known[key] = torch.zeros(size, dtype=torch.bool)
            self._known[key][torch.tensor(kept, dtype=torch.int64)] = True
        return self._known[key]

    def indices(self, kept: tuple[int, ...], size: int) -> Tensor:
        """The indices of the mask, int64."""
        key = (id(kept), size)
        if key not in self._indices:
            self._indices[key] = self.mask(kept, size).nonzero().flatten()
        return self._indices[key]


def folded(folds: Mapping[str, Tensor], dtype: torch.dtype | None) -> Step:
    """Constants are added, in the dtype of the check."""

    def step(name: str, tensor: Tensor) -> Tensor:
        if name not in folds:
            return tensor
        value = cast(dtype)(name, tensor)
        return value + folds[name].to(value)

    return step


class _Made(dict[str, Any]):
    """A module's parameters or buffers, made by a reader at every look. What the module writes, it reads back."""

    def __init__(self, held: Mapping[str, Any], path: str, read: Reader) -> None:
        super().__init__(held)
        self.held, self.path, self.read = held, path, read

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is None or value is not self.held.get(name):
            return value
        return self.read(f"{self.path}.{name}" if self.path else name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if super().__contains__(name) else default

    def items(self) -> Any:
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        return (self[name] for name in self)


@contextlib.contextmanager
def reading(model: nn.Module, read: Reader) -> Iterator[None]:
    """Inside, the model's parameters and buffers are what the reader makes of them.

    oneDNN copies every weight into an order of its own, so it is off where one of them is large.
    """
    before = [(path, module, module._parameters, module._buffers) for path, module in model.named_modules()]
    recurrent = [(path, module, module._flat_weights) for path, module, *_ in before if isinstance(module, nn.RNNBase)]
    reorders = torch.backends.mkldnn.enabled
    try:
        large = any(8 * p.numel() > SMALL for _, _, held, _ in before for p in held.values() if p is not None)
        torch.backends.mkldnn.enabled = reorders and not large  # type: ignore[assignment]
        for path, module, parameters, buffers in before:
            module.__dict__["_parameters"] = _Made(parameters, path, read) if parameters else {}
            module.__dict__["_buffers"] = _Made(buffers, path, read) if buffers else {}
        for path, module, _ in recurrent:  # they hold a list of their own
            names = module._flat_weights_names
            module.__dict__["_flat_weights"] = [read(f"{path}.{name}" if path else name) for name in names]
        yield
    finally:
        torch.backends.mkldnn.enabled = reorders
        for _, module, held in recurrent:
            module.__dict__["_flat_weights"] = held
        for _, module, parameters, buffers in before:
            module.__dict__["_parameters"], module.__dict__["_buffers"] = parameters, buffers


class Later:
    """An input of a graph that is made where it is used."""

    def __init__(self, read: Reader, name: str) -> None:
        self.read, self.name = read, name


class LazyRun(Interpreter):
    """Runs a graph whose inputs may be made later, and drops every value after its last use."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.owning_module or nn.Module(), graph=graph)

    def fetch_args_kwargs_from_env(self, n: Node) -> Any:
        """The arguments of a call, with nothing left to be made."""
        found = super().fetch_args_kwargs_from_env(n)
        return pytree.tree_map(lambda a: a.read(a.name) if isinstance(a, Later) else a, found)
