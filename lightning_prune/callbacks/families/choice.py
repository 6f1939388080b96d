"""Which channels go: the network is traced when the phase begins, and scored and selected time and again in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.families.aim import LatencyAim
from lightning_prune.callbacks.families.begun import Begun, PhaseOfOneNetwork
from lightning_prune.callbacks.logs import by_reason, log_selection
from lightning_prune.callbacks.phases import training_length
from lightning_prune.callbacks.step import trained_by
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.selection import Resource, Selection
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.thresholds import Rule
from lightning_prune.support.modes import Arguments
from lightning_prune.support.network import find_network
from lightning_prune.support.tensors import shape_only

_SELECTIONS = 8  # times in the phase, at least, that the channels are selected anew


class ChannelChoice(PhaseOfOneNetwork):
    """The part of `ChannelPruning` up to the removal: units, scores, selections, what a checkpoint holds of them."""

    scales_only = False  # whether units are the groups with BatchNorm scale factors alone
    rule: Rule | None = None  # in which order a layer's groups go, see `functional.thresholds.costs`; None: as scored
    delta = 0.0  # the rule's parameter where there is no target
    units: ChannelUnits
    aim: LatencyAim
    budget: tuple[Resource, float] | None
    exclude: Sequence[str]
    prune_frozen: bool
    min_keep: float
    divisor: int
    surgery: dict[str, Any]

    def reset(self) -> None:
        super().reset()
        self.selector: Selector | None = None
        self.selection: Selection | None = None
        self.example: Arguments | None = None
        self.left: dict[str, Tensor] = {}  # parameters that did not train when the phase began
        self.aim.reset()
        self.numbers: dict[str, float] = {"macs": 1.0, "params": 1.0, "channels": 1.0}

    # ---- what a method may say further ------------------------------------------------------------------------------

    def selected(self, units: ChannelUnits, selection: Selection) -> None:
        """Take note of a fresh selection; called several times in the sparsify phase."""

    def find_units(
        self, network: nn.Module, graph: ChannelGraph, trains: Callable[[Tensor], bool], stay: Mapping[str, str]
    ) -> ChannelUnits:
        """The channel groups to choose among; the arguments are those of `ChannelUnits.of`."""
        return ChannelUnits.of(
            network, graph, exclude=self.exclude, scales_only=self.scales_only, trains=trains, stay=stay
        )

    def budget_now(self) -> tuple[Resource, float] | None:
        """What the next removal may leave, as a share of the network at hand; None: the budget as it was given."""
        return None

    def shares(self, selection: Selection) -> dict[str, float]:
        """What a selection leaves, as shares of the network that the fit began with."""
        return selection.numbers()

    # ---- the family -------------------------------------------------------------------------------------------------

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Trace the network on this batch's input, or on one of the shapes that a checkpoint names."""
        name = self._begun.network if self._begun is not None else self.network_name
        self.root = network = find_network(pl_module, name, self.averages.parameters())
        if batch is not None:
            self.example = calibrate.network_input(trainer, pl_module, network, batch, self.calibration_forward)
        else:
            self.example = pytree.tree_map_only(Tensor, lambda t: t.to(pl_module.device), self.example)
        graph, self._foreseen = self.traced(network, self.example).graph, None
        if self._begun is None:
            trains = (lambda p: True) if self.prune_frozen else trained_by(trainer.optimizers)
            self._begun = Begun.now(pl_module, network, graph, trains, self._readers)
        self.left = self._begun.parameters(network)
        held = {id(p) for p in self.left.values()}
        self.units = self.find_units(network, graph, lambda p: id(p) not in held, self._begun.reasons())
        for line in by_reason((n, why) for n, why in self.units.frozen.items() if why != "the network's output"):
            self.monitor.warn_once(line, f"{type(self).__name__} leaves whole {line}.")
        self.selector = self._selector(self.units)

    def check_some_may_go(self, graph: ChannelGraph, stay: Mapping[str, str]) -> None:
        units = self.find_units(self.root, graph, lambda p: True, stay)
        self._selector(units).select(torch.ones(units.size), budget=self.budget_now())

    def _selector(self, units: ChannelUnits) -> Selector:
        return Selector(
            units, rule=self.rule, budget=self.budget, delta=self.delta, min_channels=self.min_keep,
            divisor=self.divisor, form=self.surgery.get("form", "auto"),
        )  # fmt: skip

    def before_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.phases is not None
        share = -(-(self.phases.prune - self.phases.begin) // _SELECTIONS)  # of a phase that is shorter than epochs
        every = max(1, min(training_length(trainer).batches_per_epoch, share))
        if (self.seen - self.phases.begin) % every == 0:
            self.select(trainer, pl_module, aim=self.seen == self.phases.begin)

    def sites(self) -> Mapping[str, nn.Module]:
        return {path: self.root.get_submodule(path) for path in self.units.sites()}

    @torch.no_grad()
    def select(
        self, trainer: Trainer, pl_module: LightningModule, *, aim: bool = False, removal: bool = False
    ) -> Selection:
        """Score the groups and select; the same on all ranks. With ``aim`` a latency target is measured anew."""
        assert self.selector is not None
        score = trainer.strategy.broadcast(self.scored(trainer, pl_module).detach().double().cpu())
        keep = self.aim.keep(trainer, self.selector, score, self.example, measure=aim, removal=removal)
        self.selection = self.selector.select(score, removal=removal, budget=self.budget_now(), keep=keep)
        self.numbers = self.shares(self.selection)
        self.selected(self.units, self.selection)
        log_selection(trainer, self.units.layers, self.selection.thresholds.tolist(), self.selection.kept)
        return self.selection

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state() | {"numbers": dict(self.numbers)}
        if self.stage == "soft":  # the plan stands beside the weights, see `note_shapes`
            shapes = pytree.tree_map_only(Tensor, shape_only, self.example)
            state |= {"example": tuple(shapes), "latency": self.aim.state()}
        return state

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        super().restore(pl_module, state)
        self.numbers = dict(state["numbers"])
        self.example = Arguments(*state["example"]) if state.get("example") else None
        self.aim.restore(state.get("latency", {}))
