"""What a pruning callback tells: scalars under ``prune/``, numbers of layers for the logger, warnings, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_prune.callbacks.phases import Phase
from lightning_prune.callbacks.trainer import log_histograms, log_to_loggers
from lightning_prune.support.latency import Latency

PHASES: dict[Phase, float] = {"warmup": 0.0, "sparsify": 1.0, "finetune": 2.0}
_SHOWN = 5  # names in one message


class Monitor:
    """Logs and warns for one callback.

    Args:
        histogram_every: epochs between histograms; 0: none.
    """

    def __init__(self, histogram_every: int) -> None:
        self.histogram_every = histogram_every
        self.reset()

    def reset(self) -> None:
        """Give every warning anew: another fit begins."""
        self._said: set[str] = set()

    def warn_once(self, key: str, message: str) -> None:
        """A warning, unless one of this key was given in this fit."""
        if key not in self._said:
            self._said.add(key)
            rank_zero_warn(message)

    def late(self, left: Mapping[str, Tensor], trains: Callable[[Tensor], bool]) -> None:
        """A warning if some of what did not train when the sparsify phase began does now."""
        if names := [name for name, p in left.items() if trains(p)]:
            shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            self.warn_once(
                "late",
                f"{shown} began to train after the sparsify phase had begun, and nothing of them is pruned: the target "
                "is met in the other layers alone. Begin the phase when all layers train, with a longer warmup.",
            )

    def scalars(self, pl_module: LightningModule, bar: str, values: Mapping[str, Tensor | float]) -> None:
        """Scalars of a step, by name without ``prune/``; the one named ``bar`` shows in the progress bar."""
        for name, value in values.items():
            tensor = torch.as_tensor(value, dtype=torch.float32)
            pl_module.log(f"prune/{name}", tensor, prog_bar=name == bar, on_step=True, on_epoch=False, batch_size=1)

    def histograms(self, trainer: Trainer, values: Mapping[str, Tensor]) -> None:
        """Histograms, if this epoch is one that has them."""
        if self.histogram_every and (trainer.current_epoch + 1) % self.histogram_every == 0:
            log_histograms(trainer, values)

    def removal(
        self, trainer: Trainer, soft: float | None, hard: float | None, max_gap: float, batches: int, advice: str
    ) -> None:
        """Accuracy on the calibration batches before and after a removal, and a warning if it fell off a cliff."""
        if soft is None or hard is None:
            return
        log_to_loggers(trainer, {"prune/soft_accuracy": soft, "prune/hard_accuracy": hard})
        if soft - hard > max_gap:
            rank_zero_warn(
                f"The removal cost {soft - hard:.1%} of accuracy on {batches} training batches ({soft:.1%} before, "
                f"{hard:.1%} after; max_gap={max_gap}). {advice}"
            )


def log_selection(
    trainer: Trainer, layers: Sequence[tuple[str, ...]], thresholds: Sequence[float], kept: Sequence[tuple[int, int]]
) -> None:
    """The threshold and the kept channels of each layer, for the loggers; layers are named by their first tensor."""
    numbers: dict[str, float] = {}
    for names, threshold, (channels, _) in zip(layers, thresholds, kept, strict=True):
        numbers[f"prune/layer/{names[0]}/threshold"] = threshold
        numbers[f"prune/layer/{names[0]}/channels"] = float(channels)
    log_to_loggers(trainer, numbers)


def warn_all_stay(callback: str, rule: str, kept: Sequence[tuple[int, int]], advice: str) -> None:
    """A removal took nothing; ``kept``: (kept, all) channels of each layer."""
    rank_zero_warn(
        f"{callback} removes no channel: {rule} keeps all of them (layers of {[n for _, n in kept][:_SHOWN]}... "
        f"channels). {advice}"
    )


def tell_removed(callback: str, left: Mapping[str, float], branches: Sequence[str]) -> None:
    """What a removal left, and the branches that it took whole."""
    gone = f" Branches removed whole: {', '.join(branches)}." if branches else ""
    rank_zero_info(
        f"{callback}: {left['macs']:.1%} of the MACs, {left['params']:.1%} of the parameters and "
        f"{left['channels']:.1%} of the removable channels are left.{gone}"
    )


def log_latency(trainer: Trainer, latency: Latency) -> None:
    """The CPU latency before and after the removal, in ms."""
    log_to_loggers(trainer, {"prune/latency_dense_ms": 1e3 * latency.before, "prune/latency_ms": 1e3 * latency.after})
    rank_zero_info(str(latency))


def by_reason(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """What was left out, one line for each kind of reason: "a, b and 3 more: layer_norm: its statistics depend ..."."""
    groups: dict[str, list[str]] = {}
    for name, reason in skipped:
        groups.setdefault(_kind(reason), []).append(name)
    lines = []
    for kind, names in groups.items():
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        lines.append(f"{shown}: {kind}")
    return lines


def _kind(reason: str) -> str:
    """The first of a graph's reasons, "operator at place (Class): why; ...", without its place."""
    first = reason.split("; ")[0]
    operator, at, rest = first.partition(" at ")
    return f"{operator}: {rest.partition('): ')[2]}" if at and "): " in rest else first
