"""The family that removes channels: units are groups of channels, the outcome is a plan that is applied in mid-fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.checkpoint import ShapeHooks, note_shapes
from lightning_prune.callbacks.families.aim import LatencyAim
from lightning_prune.callbacks.families.begun import Begun, PhaseOfOneNetwork
from lightning_prune.callbacks.families.zeros import warn_if_zeros_are_free
from lightning_prune.callbacks.guard import check_diverged, check_launcher
from lightning_prune.callbacks.logs import PHASES, by_reason, log_selection, tell_removed
from lightning_prune.callbacks.options import check_channel_options
from lightning_prune.callbacks.phases import Duration, training_length
from lightning_prune.callbacks.step import trained_by
from lightning_prune.callbacks.trainer import announce_removal, averaged_copies, log_to_loggers, shapes_may_change
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.remove import Pruned, remove_channels
from lightning_prune.channels.select.selection import Resource, Selection
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.taps import scale_readers_
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.surgery.empty import branch_names
from lightning_prune.functional.budget import one_share
from lightning_prune.functional.thresholds import Rule
from lightning_prune.masks import detach
from lightning_prune.support.averages import copies_of
from lightning_prune.support.modes import Arguments
from lightning_prune.support.network import find_network
from lightning_prune.support.retrain import reinitialise
from lightning_prune.support.tensors import shape_only

_SELECTIONS = 8  # times in the phase, at least, that the channels are selected anew


class ChannelPruning(PhaseOfOneNetwork):
    """Base of the methods that remove channels. A subclass gives ``score(units) -> [groups]`` and what else it needs.

    `ChannelUnits.aggregate` makes scores of groups from values of channels; a group of score +inf stays. Names of gates
    are those of modules (their outputs) or parameters of the network; after the removal, what is kept has no gate.

    Args:
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the measured latency at batch size ``latency_batch`` (1 if that is 0), within 3 %
            where widths are that fine, see `LatencySearch`. Give one target; half of the MACs if none is given.
        warmup: training before the sparsify phase. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: training up to the removal at the start of the next batch; as ``warmup``.
        finetune: training after the removal; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        exclude: fnmatch patterns on names of layers, whole or from any dot on, whose channels stay.
        prune_frozen: whether layers go too that do not train (requires_grad=False, or held by no optimizer).
        min_keep: least share of each layer's channels to keep; not of a branch that does nothing.
        divisor: channel counts of cut layers become multiples of it; 8 or 16 suit most hardware.
        after: "finetune" goes on with the weights that are left, "retrain" starts from fresh ones.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the removal; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this at the removal.
        latency_batch: batch size at which the CPU latency before and after is measured; 0: not at all.
        latency_runtime: where latency is measured, "eager" or "onnxruntime" (extra "onnx").
        latency_table: JSON file that keeps the measured times of layers, by machine, runtime and threads; None: none.
        histogram_every: log histograms of the scores every that many epochs; 0: never.
        surgery: further arguments of `prune_channels`: form, groups, attention, allow_inexact, norms.

    Raises:
        ValueError: an argument out of its range.
    """

    removes_at = "batch start"
    scales_only = False  # whether units are the groups with BatchNorm scale factors alone
    rule: Rule | None = None  # in which order a layer's groups go, see `functional.thresholds.costs`; None: as scored
    units: ChannelUnits

    def __init__(
        self,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        warmup: Duration = 0.1,
        sparsify: Duration = 0.5,
        finetune: Duration | None = None,
        network: str | None = None,
        exclude: Sequence[str] = (),
        prune_frozen: bool = False,
        min_keep: float = 0.05,
        divisor: int = 1,
        after: Literal["finetune", "retrain"] = "finetune",
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        latency_batch: int = 0,
        latency_runtime: str = "eager",
        latency_table: str | None = None,
        histogram_every: int = 0,
        surgery: dict[str, Any] | None = None,
    ) -> None:
        check_channel_options(min_keep, divisor, after, surgery)
        shares = {"macs": target_macs, "params": target_params, "channels": target_channels, "latency": target_latency}
        given: tuple[Any, float] = one_share(shares) or ("macs", 0.5)
        self.budget: tuple[Resource, float] | None = None if given[0] == "latency" else given
        self.aim = LatencyAim(target_latency, latency_batch, latency_runtime, latency_table)
        self.network_name, self.exclude, self.prune_frozen = network, exclude, prune_frozen
        self.min_keep, self.divisor, self.after = min_keep, divisor, after
        self.surgery = surgery or {}
        self._hooks = ShapeHooks()
        super().__init__(warmup, sparsify, finetune, recalibrate_batches, max_gap, histogram_every)

    def reset(self) -> None:
        super().reset()
        self.selector: Selector | None = None
        self.selection: Selection | None = None
        self.pruned: Pruned | None = None
        self.example: Arguments | None = None
        self.left: dict[str, Tensor] = {}  # parameters that did not train when the phase began
        self.aim.reset()
        self.numbers: dict[str, float] = {"macs": 1.0, "params": 1.0, "channels": 1.0}

    @property
    def targeted(self) -> bool:
        """Whether a target says how much goes; else it is the rule's parameter."""
        return self.budget is not None or self.aim.target is not None

    # ---- what a method may say further ------------------------------------------------------------------------------

    delta = 0.0  # the rule's parameter where there is no target
    if_all_stay = "Raise delta, regularize for longer (sparsify, travel or lam), or give a target."

    def selected(self, units: ChannelUnits, selection: Selection) -> None:
        """Take note of a fresh selection; called several times in the sparsify phase."""

    def find_units(
        self, network: nn.Module, graph: ChannelGraph, trains: Callable[[Tensor], bool], stay: Mapping[str, str]
    ) -> ChannelUnits:
        """The channel groups to choose among; the arguments are those of `ChannelUnits.of`."""
        return ChannelUnits.of(
            network, graph, exclude=self.exclude, scales_only=self.scales_only, trains=trains, stay=stay
        )

    def means(self) -> Mapping[str, Tensor]:
        """{name of one of the units' taps: means of its channels} that biases take over from what is removed."""
        return {}

    def folds(self) -> Tensor | None:
        """By what the readers of each group's channels are multiplied when its gate goes: [groups]; None: by 1."""
        return None

    def budget_now(self) -> tuple[Resource, float] | None:
        """What the next removal may leave, as a share of the network at hand; None: the budget as it was given."""
        return None

    def shares(self, selection: Selection) -> dict[str, float]:
        """What a selection leaves, as shares of the network that the fit began with."""
        return selection.numbers()

    # ---- the family -------------------------------------------------------------------------------------------------

    def check(self, trainer: Trainer) -> None:
        check_launcher(trainer, type(self).__name__)

    def open(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hooks.wrap(pl_module, lambda: averaged_copies(trainer))

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.root = find_network(pl_module, self.network_name, self.averages.parameters())
        warn_if_zeros_are_free(trainer, self.root)

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Trace the network on this batch's input, or on one of the shapes that a checkpoint names."""
        name = self._begun.network if self._begun is not None else self.network_name
        self.root = network = find_network(pl_module, name, self.averages.parameters())
        if batch is not None:
            self.example = calibrate.network_input(trainer, pl_module, network, batch, self.calibration_forward)
        else:
            self.example = pytree.tree_map_only(Tensor, lambda t: t.to(pl_module.device), self.example)
        options = {k: v for k, v in self.surgery.items() if k != "form"}
        graph = ChannelGraph.trace(network, self.example, **options)
        if self._begun is None:
            trains = (lambda p: True) if self.prune_frozen else trained_by(trainer.optimizers)
            self._begun = Begun.now(pl_module, network, graph, trains, self._readers)
        self.left = self._begun.parameters(network)
        held = {id(p) for p in self.left.values()}
        self.units = self.find_units(network, graph, lambda p: id(p) not in held, self._begun.reasons())
        for line in by_reason((n, why) for n, why in self.units.frozen.items() if why != "the network's output"):
            self.monitor.warn_once(line, f"{type(self).__name__} leaves whole {line}.")
        self.selector = Selector(
            self.units, rule=self.rule, budget=self.budget, delta=self.delta, min_channels=self.min_keep,
            divisor=self.divisor, form=self.surgery.get("form", "auto"),
        )  # fmt: skip

    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        calibrate.network_input(trainer, pl_module, self.root, batch, self.calibration_forward)

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

    def remove(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        assert self.selector is not None
        check_diverged(self.root, type(self).__name__, self.seen, None)  # scores of gates may be finite all the same
        # Before the first step, norms that start at zero have not had their time.
        selection = self.select(trainer, pl_module, aim=True, removal=self.seen > 0)
        selector, self.selector = self.selector, None
        self.aim.release()
        detach(pl_module)
        copies = copies_of(self.root, pl_module, averaged_copies(trainer), self.averages.moved())
        if (factors := self.folds()) is not None:
            for name in [n for net in (self.root, *copies) for n in scale_readers_(net, self.units.taps, factors)]:
                self.monitor.warn_once(name, f"The gate on the {name} is dropped: it could not go into a weight.")
        if bool(selection.keep.all()):
            rank_zero_warn(
                f"{type(self).__name__} removes no channel: the rule {self.rule!r} with delta={self.delta} keeps all "
                f"of them (layers of {[n for _, n in selection.kept][:5]}... channels). {self.if_all_stay}"
            )
            return False
        dense = deepcopy(self.root).cpu() if self.aim.batch and trainer.is_global_zero else None
        with shapes_may_change(trainer):
            self.pruned = remove_channels(
                self.root, self.example, selector, selection, form=self.surgery.get("form", "auto"),
                optimizers=trainer.optimizers, averaged=copies, means=self.means(),
            )  # fmt: skip
            self.selection = self.pruned.selection
            self.numbers = self.shares(self.selection)
            if self.after == "retrain":
                reinitialise(self.root, trainer.optimizers, self.seen, copies)
        announce_removal(trainer, pl_module, self.pruned.plan)
        if dense is not None:
            self.aim.tell(trainer, dense, self.root, self.example)
        tell_removed(type(self).__name__, self.numbers, branch_names(self.pruned.plan))
        return True

    def release(self, pl_module: LightningModule) -> None:
        detach(pl_module)
        self._hooks.release()

    def log_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.phases is not None
        numbers = {name: value for name, value in self.numbers.items() if not math.isnan(value)}
        own = self.metrics() if self.stage == "soft" else {}
        self.monitor.scalars(pl_module, "macs", {**own, **numbers, "phase": PHASES[self.phases.at(self.seen)]})

    def log_epoch(self, trainer: Trainer) -> None:
        self.monitor.late(self.left, trained_by(trainer.optimizers))
        if self.stage == "soft" and self.selection is not None:
            layers = zip(self.units.layers, self.units.by_layer(self.selection.score), strict=True)
            self.monitor.histograms(trainer, {f"prune/scores/{names[0]}": score for names, score in layers})

    def log_removal(self, trainer: Trainer, soft: float | None, hard: float | None) -> None:
        log_to_loggers(trainer, {f"prune/{k}": v for k, v in self.numbers.items() if not math.isnan(v)})
        advice = (
            "The scores did not tell yet which channels matter: give the sparsify phase more steps or a larger travel, "
            "or raise the target."
        )
        gap = self.max_gap if self.after == "finetune" else math.inf
        self.monitor.removal(trainer, soft, hard, gap, self.recalibrate_batches, advice)

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

    def save(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        note_shapes(pl_module, checkpoint)
