"""What structured methods share: phases, the choice of channels at boundaries, their removal, finetune, state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.callbacks import channel_logs, recalibrate, removal
from lightning_prune.callbacks.channel_method import ChannelMethod, budget_of
from lightning_prune.callbacks.checkpoint import ShapeHooks, note_shapes
from lightning_prune.callbacks.guard import check_alone, check_launcher, check_strategy
from lightning_prune.callbacks.phases import Duration, training_length
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.latency import share_for_latency
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Choice, Chooser
from lightning_prune.channels.surgery.empty import branch_names
from lightning_prune.functional.thresholds import RULES, Rule, check_delta
from lightning_prune.support.network import find_network

_SURGERY = {"form", "groups", "attention", "allow_inexact"}
_CHOICES = 8  # times in the phase, at least, that the channels are chosen anew


class ChannelPruningCallback(ChannelMethod, Callback):
    """Base of the structured methods: BatchNorm scale factors decide which channels are removed, in mid-fit.

    Args:
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %.
        target_params: the same for parameters.
        target_channels: the same for BatchNorm channels, of those that may be removed.
        target_latency: the same for the CPU latency at batch size ``latency_batch`` (1 if that is 0), measured: the
            share of MACs that gives it is searched when the phase begins and again at the removal. Give one target.
        delta: the rule's parameter where there is no target.
        rule: in which order channels go: "css" (cumulative γ² of a layer), "mass" (cumulative |γ|), "exp" (the paper's
            eq. 11 as printed), "global" (one threshold for all layers). See `functional.thresholds.costs`.
        warmup: training before scale factors are pushed. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: training while they are pushed, up to the removal at the start of the next batch; as ``warmup``.
        finetune: training after the removal; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        exclude: fnmatch patterns on names of BatchNorms, whole or from any dot on, whose channels stay.
        min_keep: least share of each layer's channels to keep; not of a branch whose scale factors are all zero, which
            goes whole where another path leads around it.
        divisor: channel counts of cut layers become multiples of it; 8 or 16 suit most hardware.
        after: "finetune" goes on with the weights that are left, "retrain" starts from fresh ones.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the removal; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this at the removal.
        latency_batch: batch size at which the CPU latency before and after is measured; 0: not at all.
        histogram_every: log histograms of the scale factors every that many epochs; 0: never.
        surgery: further arguments of `prune_channels`: form, groups, attention, allow_inexact.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        delta: float | None = None,
        rule: Rule = "css",
        warmup: Duration = 0.1,
        sparsify: Duration = 0.5,
        finetune: Duration | None = None,
        network: str | None = None,
        exclude: Sequence[str] = (),
        min_keep: float = 0.05,
        divisor: int = 1,
        after: Literal["finetune", "retrain"] = "finetune",
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        latency_batch: int = 0,
        histogram_every: int = 0,
        surgery: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        targets = {
            "macs": target_macs, "params": target_params, "channels": target_channels, "latency": target_latency
        }  # fmt: skip
        budget = budget_of(targets, delta)
        if rule not in RULES:
            raise ValueError(f"rule={rule!r} must be one of {RULES}.")
        if delta is not None:
            check_delta(delta, rule)
        if not 0 <= min_keep < 1:
            raise ValueError(f"min_keep={min_keep} is a share of each layer's channels, in [0, 1).")
        if divisor < 1:
            raise ValueError(f"divisor={divisor} must be a positive number, such as 8.")
        if after not in ("finetune", "retrain"):
            raise ValueError(f"after={after!r} must be 'finetune' or 'retrain'.")
        unknown = sorted(set(surgery or {}) - _SURGERY)
        if unknown:
            raise ValueError(f"surgery has {unknown}: expected some of {sorted(_SURGERY)}, as for prune_channels.")
        self.target_latency = target_latency
        if target_latency is not None:
            latency_batch = latency_batch or 1
        self.budget = budget
        self.delta = 1e-3 if delta is None else delta
        self.rule: Rule = rule
        self.durations = (warmup, sparsify, finetune)
        self.network_name, self.exclude = network, exclude
        self.min_keep, self.divisor, self.after = min_keep, divisor, after
        self.recalibrate_batches, self.max_gap = recalibrate_batches, max_gap
        self.latency_batch, self.histogram_every = latency_batch, histogram_every
        self.surgery = surgery or {}
        self._hooks = ShapeHooks()
        self._handles: list[RemovableHandle] = []
        self._loaded: dict[str, Any] | None = None

    # ---- life-cycle -----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called before a checkpoint's weights are loaded: the module learns to take a checkpoint's shapes."""
        if stage == "fit":
            check_strategy(trainer, type(self).__name__)
            check_launcher(trainer, type(self).__name__)
            check_alone(trainer, self)
            self.reset()
        self._loaded = None
        self._hooks.wrap(pl_module, lambda: removal.averaged_copies(trainer))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called with the model final: finds the network, takes a checkpoint's state over."""
        network = find_network(pl_module, self.network_name)
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
        if not norms:
            raise ValueError(
                f"{type(self).__name__} decides by BatchNorm scale factors, and {type(network).__name__} has none "
                "(it uses LayerNorm, GroupNorm or no norm). Use LTPCallback, which prunes weights of any model, or a "
                "backbone with BatchNorm."
            )
        if self._loaded is not None:
            state = self._loaded
            self.stage, self.seen, self.numbers = state["stage"], state["seen"], dict(state["numbers"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the length of the training is known: resolves the phases, starts watching the optimizers."""
        self.enter(trainer)
        self._release_optimizers()
        self._handles = [o.register_step_post_hook(self._after_step) for o in trainer.optimizers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called before each batch: begins the phase, chooses channels, removes them when the phase is over."""
        assert self.phases is not None
        if self.stage == "compact" or self.phases.at(self.seen) == "warmup":
            return
        if self.chooser is None:
            self._begin(trainer, pl_module, batch)
        if self.seen >= self.phases.prune:
            self._remove(trainer, pl_module)
        elif (self.seen - self.phases.begin) % self._interval(trainer) == 0:
            self._choose(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each batch: counts it, logs."""
        assert self.phases is not None
        self.seen += 1
        if trainer._logger_connector.should_update_logs:
            channel_logs.log_step(self, pl_module, self.phases.at(self.seen))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called at the end of each epoch: histograms."""
        if self.stage == "soft" and self.histogram_every and (trainer.current_epoch + 1) % self.histogram_every == 0:
            assert self.chooser is not None
            channel_logs.log_histograms(trainer, self.chooser.factors)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training ends, early too: what the phase has chosen so far is removed."""
        if self.stage == "dense":
            self.warn_still_dense()
        elif self.stage == "soft":
            rank_zero_warn(
                f"Training ended at {self.progress:.0%} of the sparsify phase: the channels are removed now, without "
                "finetune. Its checkpoints resume the phase."
            )
            self._remove(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called at the end of fit: the module is a plain, smaller model."""
        self._release_optimizers()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called at the end of every run that does not raise."""
        self._release_optimizers()
        self._hooks.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when a run raises: nothing of ours stays on the module."""
        self._release_optimizers()
        self._hooks.release()

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _interval(self, trainer: Trainer) -> int:
        """Batches between choices: an epoch, or less in a short phase."""
        assert self.phases is not None
        share = -(-(self.phases.prune - self.phases.begin) // _CHOICES)
        return max(1, min(training_length(trainer).batches_per_epoch, share))

    def _begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Trace the network on this batch's input and set the method up, anew or as a checkpoint left it."""
        self.network = find_network(pl_module, self.network_name)
        self.example = recalibrate.network_input(trainer, pl_module, self.network, batch, self.calibration_forward)
        options = {k: v for k, v in self.surgery.items() if k in ("groups", "attention", "allow_inexact")}
        graph = ChannelGraph.trace(self.network, self.example, **options)
        factors = ScaleFactors.of(self.network, graph, self.exclude).to(pl_module.device)
        if factors.frozen:
            channel_logs.warn_frozen(type(self).__name__, factors)
        self.chooser = Chooser(
            self.network, graph, factors, self.rule, self.budget, self.delta, self.min_keep, self.divisor,
            str(self.surgery.get("form", "auto")),
        )  # fmt: skip
        if self.target_latency is not None:
            self._aim_at_latency(trainer)
        self.start(factors)
        if self._loaded is not None and self.stage == "soft":
            for name, tensor in self.tensors().items():
                tensor.copy_(self._loaded["tensors"][name])
        self._loaded = None
        self.stage = "soft"

    def _aim_at_latency(self, trainer: Trainer) -> None:
        """Set the share of MACs that meets the latency target, as measured by the first rank."""
        assert self.chooser is not None
        assert self.target_latency is not None
        share = 1.0
        if trainer.is_global_zero:
            sizes = self.sizes(self.chooser.factors)
            share = share_for_latency(
                self.network, self.chooser, sizes, self.example, self.target_latency, self.latency_batch
            )
        self.chooser.budget = ("macs", float(trainer.strategy.broadcast(share)))

    @torch.no_grad()
    def _choose(self, trainer: Trainer, pl_module: LightningModule, *, last: bool = False) -> Choice:
        assert self.chooser is not None
        factors = self.chooser.factors
        self.measure(trainer, pl_module, factors)
        self.choice = self.chooser.choose(self.sizes(factors), last=last)
        self.numbers = self.choice.numbers()
        self.chosen(factors, self.choice)
        channel_logs.log_choice(trainer, factors, self.choice)
        return self.choice

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Runs after each step that an optimizer really takes: not on an overflow of the loss scale, for one."""
        if self.stage != "soft" or self.chooser is None:
            return
        rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
        factors = self.chooser.factors
        mine = [rates.get(id(p), 0.0) for p in factors.params]
        if any(mine):
            self.push(factors, factors.per_param(mine))

    def _remove(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.chooser is not None
        batches = recalibrate.calibration_batches(trainer, self.recalibrate_batches)
        forward = self.calibration_forward
        if self.target_latency is not None:
            self._aim_at_latency(trainer)
        recalibrate.recalibrate(trainer, pl_module, batches, forward)
        soft = recalibrate.accuracy(trainer, pl_module, batches, forward)
        # Before the first step, norms that start at zero are not dead but fresh.
        choice = self._choose(trainer, pl_module, last=self.seen > 0)
        keep = trainer.strategy.broadcast(choice.keep)
        if bool(keep.all()):
            rank_zero_warn(
                f"{type(self).__name__} removes no channel: the rule {self.rule!r} with delta={self.delta} keeps all "
                f"of them (layers of {[n for _, n in choice.kept][:5]}... channels). Raise delta, push for longer "
                "(sparsify, travel or lam), or give a target."
            )
            self.stage, self.chooser = "compact", None
            return
        before = channel_logs.latency_copy(self.network, self.latency_batch, trainer)
        with removal.shapes_may_change(trainer):
            self.pruned = self.chooser.cut(
                self.network, self.example, keep, constants="fold", form=self.surgery.get("form", "auto"),
                optimizers=trainer.optimizers, averaged=removal.averaged_copies(trainer),
            )  # fmt: skip
            if not torch.equal(self.pruned.keep, keep):  # the network's code could not express it
                self.choice = self.chooser.describe(self.pruned.keep)
                self.numbers = self.choice.numbers()
            if self.after == "retrain":
                removal.reinitialise(self.network, trainer, self.seen)
        self.stage = "compact"
        removal.begin_anew(trainer)
        recalibrate.recalibrate(trainer, pl_module, batches, forward)
        hard = recalibrate.accuracy(trainer, pl_module, batches, forward)
        channel_logs.log_removal(self, trainer, soft, hard, before)
        whole = ", ".join(branch_names(self.pruned.plan))
        rank_zero_info(
            f"{type(self).__name__}: {self.numbers['channels']:.1%} of the channels removed; "
            f"{self.numbers['macs']:.1%} of the MACs and {self.numbers['params']:.1%} of the parameters are left."
            + (f" Branches that went whole, as nothing of them was alive: {whole}." if whole else "")
        )
        self.chooser = None

    def _release_optimizers(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, loadable with ``weights_only=True``. The plan stands beside the weights."""
        state: dict[str, Any] = {"stage": self.stage, "seen": self.seen, "numbers": dict(self.numbers)}
        if self.stage == "soft":
            state["tensors"] = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        return state

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The plan goes into checkpoints that are saved after a run, too."""
        note_shapes(pl_module, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called before the model is final; the state is put in place when it is."""
        self._loaded = state_dict
