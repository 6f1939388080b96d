"""Averaged copies that the user keeps beside the model: found by their architecture, and by having moved.

Lightning's averaging callbacks are asked directly. Any other copy is a module of the same class and parameters as the
trained network or as a part that holds most of it, which no optimizer holds, and which can be reached from the
attributes of the LightningModule or of a callback, through modules, lists, dicts and wrappers. A teacher of the same
architecture is one as well; what tells an average from it is that an average moves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_prune.support.network import held_by, reachable
from lightning_prune.support.swap.class_swap import original_class


class Lookalike(NamedTuple):
    """A module of the architecture of a trained part.

    Attributes:
        address: where it is, see `reachable`.
        path: of the part, below the LightningModule.
        module: itself.
    """

    address: str
    path: str
    module: nn.Module


def lookalikes(
    module: nn.Module, trains: Callable[[Tensor], bool], beside: Mapping[str, object] | None = None
) -> list[Lookalike]:
    """All modules that look like a part of ``module`` with at least half of what trains, and do not train.

    Args:
        module: the LightningModule.
        trains: whether a parameter does.
        beside: objects whose public attributes are searched too, by address: callbacks.
    """

    def size(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters() if trains(p))

    total = size(module)
    trained: dict[Hashable, str] = {}
    for path, part in module.named_modules() if total else ():
        if 2 * size(part) >= total:
            trained.setdefault(_architecture(part), path)
    found, inside = [], set[int]()
    others = (held_by(address, holder) for address, holder in (beside or {}).items())
    for address, part in chain(reachable(module), *others):
        if id(part) in inside or any(trains(p) for p in part.parameters()):
            continue
        path = trained.get(_architecture(part))
        if path is not None:
            found.append(Lookalike(address, path, part))
            inside |= {id(m) for m in part.modules()}
    return found


def _architecture(part: nn.Module) -> Hashable:
    return original_class(part), tuple((name, tuple(p.shape)) for name, p in part.named_parameters())


def _fingerprint(part: nn.Module) -> Tensor:
    return torch.stack([p.detach().double().sum() for p in part.parameters()])


class Averages:
    """Tells which lookalikes have moved since the fit began."""

    def __init__(self) -> None:
        self.all: list[Lookalike] = []
        self._start: dict[str, Tensor] = {}
        self._before: set[str] = set()

    def note(
        self, module: nn.Module, trains: Callable[[Tensor], bool], beside: Mapping[str, object] | None = None
    ) -> None:
        """Begin to watch the lookalikes of a LightningModule and of what stands ``beside`` it, see `lookalikes`."""
        self.all = lookalikes(module, trains, beside)
        self._start = {copy.address: _fingerprint(copy.module) for copy in self.all} | self._start

    def parameters(self) -> list[Tensor]:
        """Those of all lookalikes."""
        return [p for copy in self.all for p in copy.module.parameters()]

    def moved(self) -> list[Lookalike]:
        """Those that follow the model."""
        return [
            copy
            for copy in self.all
            if copy.address in self._before or not torch.equal(self._start[copy.address], _fingerprint(copy.module))
        ]

    def state(self) -> list[str]:
        """Addresses of those that have moved, for a checkpoint."""
        return [copy.address for copy in self.moved()]

    def load(self, state: list[str]) -> None:
        """Take over what `state` gave: a resumed run may not see them move before the removal."""
        self._before = set(state)


def copies_of(
    network: nn.Module, module: nn.Module, averaged: Iterable[nn.Module], moved: Iterable[Lookalike]
) -> list[nn.Module]:
    """The modules that stand for ``network`` in all copies of it.

    A copy of a part of the network alone is none: a plan for it cannot be proved, as its input is not known.

    Args:
        network: a part of ``module``.
        module: the LightningModule.
        averaged: copies of the whole module, or wrappers with one as their ``module``.
        moved: copies that are kept in the module, and so in copies of it too, or by a callback.
    """
    path = next(path for path, part in module.named_modules() if part is network)
    wholes = [getattr(average, "module", average) for average in averaged]
    found: list[nn.Module] = [whole.get_submodule(path) for whole in wholes]
    for copy in moved:
        if f"{path}.".startswith(f"{copy.path}." if copy.path else ""):
            inner = path.removeprefix(copy.path).removeprefix(".")
            kept = (dict(reachable(whole)).get(copy.address) for whole in (module, *wholes))
            places = [place for place in kept if place is not None] or [copy.module]  # one that a callback keeps
            found += [place.get_submodule(inner) for place in places]
    return found
