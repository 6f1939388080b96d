"""The trail: checkpoints saved as the kept share crosses given values, and picking the best of them.

LTP prunes gradually, so one run passes through every sparsity; the trail keeps the stations that the user asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_prune.functional.shrink import FORMS
from lightning_prune.support.table import Shown, Table, percent

INDEX = "index.json"


@dataclass(frozen=True)
class TrailEntry:
    """One saved checkpoint: the kept shares that it crossed, what it is, and what it scored.

    Its path is relative to the index in ``index.json``, and absolute in a checkpoint.
    """

    path: str
    crossed: tuple[float, ...]
    kept: float
    sparsity: float
    phase: str
    epoch: int
    step: int
    metric: str | None = None
    score: float | None = None

    def prune(self, module: nn.Module) -> nn.Module:
        """Load this checkpoint's weights into a LightningModule of the same kind, and zero what it had pruned.

        Args:
            module: the LightningModule (its weights are replaced); strict loading.

        Returns:
            The same module, with hard zeros.
        """
        checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
        return zero_below_thresholds(module, checkpoint)


@torch.no_grad()
def zero_below_thresholds(module: nn.Module, checkpoint: Mapping[str, Any]) -> nn.Module:
    """Zeroes, in place, what a checkpoint from the sparsify phase had pruned; others have their zeros already.

    Kept weights become what the network computed with, where its method changes them.

    Args:
        module: has the checkpoint's weights.
        checkpoint: as Lightning saved it.
    """
    for state in checkpoint["callbacks"].values():
        if isinstance(state, dict) and "thresholds" in state and "names" in state:
            params = dict(module.named_parameters())
            form = FORMS.get(state.get("form", "step"))
            thresholds = state["thresholds"].cpu()
            factors = state.get("tensors", {}).get("factor", torch.ones_like(thresholds)).cpu()  # of held norms
            for name, tau, factor in zip(state["names"], thresholds, factors, strict=True):
                w = params[name]
                pruned = w.float().square() <= tau
                w.copy_(w if form is None else form(w, tau) * factor).masked_fill_(pruned, 0)
    return module


class Trail(Shown):
    """The index of a trail, read back from its folder. ``print`` shows a table.

    Args:
        folder: where the checkpoints and ``index.json`` are.

    Raises:
        FileNotFoundError: there is no index in the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        index = Path(folder) / INDEX
        if not index.is_file():
            raise FileNotFoundError(f"No trail at {index}: give the trail_dir of a fit that had trail=[...].")
        rows = json.loads(index.read_text())
        self.entries = [
            TrailEntry(**{**row, "crossed": tuple(row["crossed"]), "path": str(Path(folder) / row["path"])})
            for row in rows
        ]

    def pick(self, max_kept: float = 1.0, min_kept: float = 0.0, mode: Literal["max", "min"] = "max") -> TrailEntry:
        """The entry with the best score whose kept share lies in the given range; the sparser one of equals.

        Args:
            max_kept: most of the weights that may be left.
            min_kept: least of the weights that may be left.
            mode: whether a high or a low score is good.

        Raises:
            ValueError: no entry lies in the range.
        """
        inside = [e for e in self.entries if min_kept <= e.kept <= max_kept]
        if not inside:
            shares = ", ".join(f"{e.kept:.3f}" for e in self.entries)
            raise ValueError(f"No entry keeps between {min_kept} and {max_kept} of the weights; there are: {shares}.")
        sign = 1 if mode == "max" else -1
        worst = float("-inf")
        return max(inside, key=lambda e: (worst if e.score is None else sign * e.score, -e.kept))

    def table(self) -> Table:
        """A row a checkpoint."""
        metric = next((e.metric for e in self.entries if e.metric), "score")
        head = ("crossed", "kept", "sparsity", "phase", "epoch", "step", metric, "checkpoint")
        rows = []
        for e in self.entries:
            crossed, score = ", ".join(f"{v:g}" for v in e.crossed), "-" if e.score is None else f"{e.score:.4f}"
            shares = percent(e.kept), percent(e.sparsity)
            rows.append((crossed, *shares, e.phase, str(e.epoch), str(e.step), score, Path(e.path).name))
        return Table(head, rows, left=0)


@dataclass
class TrailWriter:
    """Saves the checkpoints of one fit.

    Args:
        values: kept shares to stop at, each in (0, 1].
        folder: where to; None: ``<log dir>/trail``.
        metric: validation metric to note; None: the first of ``val*acc*`` or ``val*``.
    """

    values: Sequence[float]
    folder: str | None = None
    metric: str | None = None
    entries: list[TrailEntry] = field(default_factory=list)
    _loaded: bool = field(default=False, init=False, repr=False)  # entries that this run's index does not have yet

    def __post_init__(self) -> None:
        bad = [v for v in self.values if not 0 < v <= 1]
        if bad:
            raise ValueError(f"trail={list(self.values)}: {bad} are not kept shares, which lie in (0, 1].")

    def visit(self, trainer: Trainer, kept: float, numel: int, phase: str) -> None:
        """Save a checkpoint if the kept share, of ``numel`` weights, has newly come to or under one of the values."""
        done = {v for e in self.entries for v in e.crossed}
        # Rounding to whole weights must not make a target miss its own value.
        crossed = tuple(sorted((v for v in self.values if kept <= v + 1 / numel and v not in done), reverse=True))
        if not crossed and not self._loaded:
            return
        folder = self._folder(trainer)
        if crossed:
            self._save(trainer, folder, crossed, kept, phase)
        if trainer.is_global_zero:
            rows = [asdict(e) | {"path": os.path.relpath(folder / e.path, folder)} for e in self.entries]
            fresh = folder / f"{INDEX}.new"
            fresh.write_text(json.dumps(rows, indent=1))
            fresh.replace(folder / INDEX)  # whole at any time, should the process be killed
        self._loaded = False

    def _save(self, trainer: Trainer, folder: Path, crossed: tuple[float, ...], kept: float, phase: str) -> None:
        name = self.metric or _guess_metric(trainer)
        score = trainer.callback_metrics.get(name) if name else None
        path = folder / f"kept-{crossed[-1]:g}.ckpt"
        entry = TrailEntry(
            path=str(path.absolute()), crossed=crossed, kept=kept, sparsity=1 - kept,
            phase=phase,
            epoch=trainer.current_epoch, step=trainer.global_step,
            metric=name, score=None if score is None else float(score),
        )  # fmt: skip
        self.entries.append(entry)
        trainer.save_checkpoint(path)

    def state(self) -> dict[str, Any]:
        """The entries so far, for the callback's state."""
        return {"entries": [{**asdict(e), "crossed": list(e.crossed)} for e in self.entries]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on with the entries of a resumed run."""
        self.entries = [TrailEntry(**{**row, "crossed": tuple(row["crossed"])}) for row in state["entries"]]
        self._loaded = bool(self.entries)

    def _folder(self, trainer: Trainer) -> Path:
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "trail")
        folder = Path(trainer.strategy.broadcast(str(folder)))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _guess_metric(trainer: Trainer) -> str | None:
    names = [n for n in trainer.callback_metrics if n.startswith("val")]
    return next((n for n in names if "acc" in n), names[0] if names else None)
