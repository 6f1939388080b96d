"""Knowledge distillation as a callback of its own, beside any method of pruning or none."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from lightning_prune.callbacks.distillation.calls import Call, recording
from lightning_prune.callbacks.distillation.compare import Comparison
from lightning_prune.callbacks.distillation.teacher import FILE, find_teacher, fingerprint, read_copy, write_copy
from lightning_prune.callbacks.guard import LastFit, check_strategy, goes_on
from lightning_prune.callbacks.options import naming_near_options
from lightning_prune.callbacks.step import trained_by
from lightning_prune.functional.distillation import Matching, mixed
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import plan_of
from lightning_prune.support.averages import lookalikes
from lightning_prune.support.network import find_network
from lightning_prune.support.swap.training_step import unwrap_training_step, wrap_training_step


class DistillationCallback(Callback):
    """Knowledge distillation (Hinton et al., arXiv 1503.02531): ``(1 − α)·loss + α·T²·KL(teacher ‖ student)``.

    The loss that ``training_step`` returns is replaced; what it logs stays the task's. The teacher sees what the
    network was called on in the step, in eval mode and without gradients. It belongs to the callback: no optimizer,
    checkpoint, pruning or averaging touches it. In manual optimization write ``loss = distill(self, loss)`` before the
    backward pass.

    A teacher that is a copy of the start is written to ``teacher_dir`` when the first checkpoint is saved, once, and a
    resumed run reads it from there. One that was given is to be given again.

    Args:
        teacher: a module; the path of a file that `save_pruned` wrote; a timm name, with ``checkpoint`` or
            ``pretrained``; None: a copy of the network when the fit starts.
        checkpoint: file of the timm model's weights.
        pretrained: take timm's own weights.
        teacher_kwargs: other arguments of ``timm.create_model``.
        teacher_dir: folder of the copy; None: the log directory.
        temperature: T > 0; larger shows more of what the teacher gives the wrong classes.
        alpha: α in [0, 1].
        features: layers whose outputs are to look like the teacher's: paths in the network, or {path in the network:
            path in the teacher}.
        matching: "attention": where they look, of layers with positions (Zagoruyko & Komodakis, arXiv 1612.03928);
            "similarity": which samples they hold alike, of any (Tung & Mori, arXiv 1907.09682). Neither depends on
            the width, so channels may go.
        beta: weight of the features' mean squared difference; the papers take 1000 and 3000.
        class_dim: dim of the classes in the logits, 1 as in ``cross_entropy``; -1 for [N, tokens, classes].
        network: name of the child of the LightningModule that is taught; None: the innermost that holds all parameters.

    Raises:
        ValueError: an argument out of its range.
    """

    @naming_near_options
    def __init__(
        self,
        teacher: nn.Module | str | Path | None = None,
        checkpoint: str | None = None,
        pretrained: bool = False,
        teacher_kwargs: dict[str, Any] | None = None,
        teacher_dir: str | None = None,
        temperature: float = 4.0,
        alpha: float = 0.9,
        features: Mapping[str, str] | Sequence[str] | None = None,
        matching: Matching = "attention",
        beta: float = 1000.0,
        class_dim: int = 1,
        network: str | None = None,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be positive, such as 4.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is the share of the soft targets in the loss, in [0, 1].")
        if matching not in ("attention", "similarity"):
            raise ValueError(f"matching={matching!r} must be 'attention' or 'similarity'.")
        if beta < 0:
            raise ValueError(f"beta={beta} must not be negative: it is the weight of the features.")
        if alpha == 0 and (beta == 0 or not features):
            raise ValueError("alpha=0 without features distils nothing: raise alpha, or name layers in features=.")
        if not isinstance(teacher, str) and (checkpoint is not None or pretrained or teacher_kwargs):
            raise ValueError("checkpoint, pretrained and teacher_kwargs are of a teacher by its timm name: give that.")
        if isinstance(features, str):
            raise ValueError(f"features={features!r} must be a list of paths, such as [{features!r}].")
        self.source, self.checkpoint, self.pretrained = teacher, checkpoint, pretrained
        self.teacher_kwargs, self.teacher_dir = dict(teacher_kwargs or {}), teacher_dir
        self.temperature, self.alpha, self.matching, self.beta = temperature, alpha, matching, beta
        self.pairs = dict(features) if isinstance(features, Mapping) else {path: path for path in features or ()}
        self.class_dim, self.network_name = class_dim, network
        self.teacher: nn.Module | None = None
        self._comparison: Comparison | None = None
        self._state: dict[str, Any] = {}
        self._loaded: dict[str, Any] | None = None
        self._calls: list[Call] = []
        self._asked = self._distilled = False  # whether the loss was asked for: in this step, in this fit
        self._last_fit: LastFit | None = None

    def logits_of(self, output: Any) -> Tensor:
        """The logits in what a network returns: it, its ``logits``, or its first element. Override for others."""
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if isinstance(found, (tuple, list)) and found:
            found = found[0]
        if not isinstance(found, Tensor):
            raise ValueError(
                f"no logits are known in an output of {type(output).__name__}: override logits_of(output) of "
                f"{type(self).__name__}."
            )
        return found

    # ---- Lightning's hooks ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called before the model is complete: refuses what can be refused."""
        self._loaded, self._distilled = None, False
        if stage == "fit":
            check_strategy(trainer, type(self).__name__)
            if not goes_on(self._last_fit, trainer, pl_module):
                self.teacher = None
            self._last_fit = weakref.ref(trainer), weakref.ref(pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called before the fit starts; the teacher is found then."""
        self._loaded = state_dict

    def state_dict(self) -> dict[str, Any]:
        """Which teacher it is, and where: not the teacher itself."""
        return dict(self._state)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called with the model final and a checkpoint's weights loaded: finds the teacher, wraps the step."""
        given = [*self.source.parameters()] if isinstance(self.source, nn.Module) else []
        copies = (p for copy in lookalikes(pl_module, trained_by(trainer.optimizers)) for p in copy.module.parameters())
        network = find_network(pl_module, self.network_name, [*given, *copies])
        folder = Path(self.teacher_dir or trainer.log_dir or trainer.default_root_dir)  # the same on all ranks
        if self.teacher is None:
            teacher = self._find(network, folder).to(pl_module.device)
            self.teacher = trainer.precision_plugin.convert_module(teacher)
        self._comparison = Comparison(
            network, self.teacher, self.pairs, self.logits_of, self.temperature, self.class_dim, self.matching
        )
        if (plan := plan_of(network)) is not None:
            self.on_channels_removed(trainer, pl_module, plan)
        wrap_training_step(pl_module, self._around)

    def _find(self, network: nn.Module, folder: Path) -> nn.Module:
        """The teacher of a fit that begins, or of one that is resumed."""
        before, self._loaded = self._loaded, None
        if self.source is not None:
            teacher = self.source if isinstance(self.source, nn.Module) else find_teacher(
                self.source, self.checkpoint, self.pretrained, self.teacher_kwargs, network
            )  # fmt: skip
            self._state = {"fingerprint": fingerprint(teacher)}
            if before is not None and before["fingerprint"] != self._state["fingerprint"]:
                rank_zero_warn(
                    "The teacher is not the one that the checkpoint's run had: the resumed run differs from an "
                    "uninterrupted one."
                )
            return teacher
        if before is not None:
            if "file" not in before:
                raise ValueError("The run that this checkpoint is of was given its teacher: give teacher= again.")
            kept = Path(before["file"])
            kept = kept if self.teacher_dir is None else (folder / kept.name).absolute()
            self._state = before | {"file": str(kept)}
            return read_copy(network, kept, before)
        teacher = deepcopy(network)
        plan, known = plan_of(teacher), fingerprint(teacher)
        file = str((folder / FILE.format(known[:8])).absolute())
        self._state = {"file": file, "fingerprint": known, "plan": None if plan is None else plan.to_json()}
        return teacher

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the copy that a resumed run needs, once."""
        if self.teacher is not None and "file" in self._state and trainer.is_global_zero:
            file = Path(self._state["file"])
            if not file.is_file():
                rank_zero_info(f"The teacher, a copy of the network as the fit began, is kept in {file}.")
            write_copy(self.teacher, file)

    def on_channels_removed(self, trainer: Trainer, module: LightningModule, plan: PruningPlan) -> None:
        """Layers of a network that runs as a rewritten graph are not called any more; all else goes on as it is."""
        assert self._comparison is not None
        if plan.form == "graph" and self._comparison.layers:
            rank_zero_warn(
                f"{type(self).__name__}: {type(self._comparison.student).__name__} runs as a rewritten graph from here "
                f"on, in which {', '.join(self._comparison.layers)} are not called: their features are not matched."
            )
            self._comparison.forget_layers()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Refuses steps of manual optimization that ran the network, or the first of all, and did not ask."""
        ran = any(call.trains for call in self._calls)
        if not pl_module.automatic_optimization and not self._asked and (ran or not self._distilled):
            raise ValueError(
                f"{type(pl_module).__name__} optimizes manually, where the loss is known to its training_step alone: "
                f"write loss = lightning_prune.distill(self, loss) before self.manual_backward(loss), or take "
                f"{type(self).__name__} out."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module is as it was."""
        unwrap_training_step(pl_module, self._around)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As `on_fit_end`."""
        unwrap_training_step(pl_module, self._around)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As `on_fit_end`."""
        unwrap_training_step(pl_module, self._around)

    # ---- the loss ---------------------------------------------------------------------------------------------------

    def _around(self, module: LightningModule, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert self._comparison is not None
        self._asked = False
        with recording(self._comparison.student, self._comparison.layers) as self._calls:
            output = step(*args, **kwargs)
        if output is None or self._asked or not module.automatic_optimization:
            return output
        if isinstance(output, Mapping):
            return {**output, "loss": self.loss(module, output["loss"])}
        return self.loss(module, output)

    def loss(self, module: LightningModule, task: Tensor) -> Tensor:
        """The task's loss mixed with what the teacher says to all calls of the network since the last time, a scalar.

        Raises:
            ValueError: there was no call, or outputs do not match.
        """
        assert self._comparison is not None
        self._asked = self._distilled = True
        calls = list(self._calls)
        self._calls.clear()
        soft, features = self._comparison.losses(calls)
        logged = {"distill/loss": soft} | ({} if features is None else {"distill/features": features})
        size = len(self.logits_of(calls[0].output))
        module.log_dict({name: value.detach() for name, value in logged.items()}, batch_size=size)
        return mixed(task, soft, features, self.alpha, self.beta)
