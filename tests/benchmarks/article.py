"""What the LTP article's figures show, in small, with ``mode="paper"``: which penalty, which gradient, which spread.

    python -m tests.benchmarks.article --out tests/benchmarks/article.md --images docs/images

Three ablations on the bundled digits and a network of two hidden layers, all from one dense start: no penalty, L2 and
the soft L0; the weights around the threshold with and without the terms that the article drops from their gradient
(eq. 14); and the spread of runs that differ in the order of their batches. Needs matplotlib. About a CPU minute.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import LTPCallback
from lightning_prune.callbacks.step import Step
from lightning_prune.masks.units import WeightUnits
from lightning_prune.plots.figure import new_figure
from lightning_prune.zoo.data import DigitsDataModule
from tests import ltp_equations as ltp
from tests.benchmarks.bench.pipelines import publish, stamps
from tests.benchmarks.bench.runs import circumstances

LAYER = "net.4.weight"  # the second of the hidden layers
PAPER: dict[str, Any] = {"mode": "paper", "lam": 1e-4, "threshold_lr": 1e-5, "temperature": 1e-2, "sparsify": 1.0}
SLOWER: dict[str, Any] = {"threshold_lr": 3e-7}  # a gap has the time to open, and a run passes every kept share
KEPT = (0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2)
CLOSE, AROUND = 0.02, 0.2  # of τ, on both sides; the band of the gate is about 0.01 wide


class Perceptron(lightning.LightningModule):
    """Two hidden layers of 128 with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.decay = 0.1, 0.0
        norms = [nn.BatchNorm1d(128), nn.BatchNorm1d(128)]
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), norms[0], nn.ReLU(), nn.Linear(128, 128), norms[1], nn.ReLU(),
            nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, weight_decay=self.decay)


class FullGradient(LTPCallback):
    """Weights follow the exact gradient of loss and penalty: the terms in the slope of the gate are put back."""

    def before_step(self, units: WeightUnits, step: Step) -> None:
        dropped = []
        for target, tau, slope in zip(units.targets, self.thresholds(), self._slope, strict=True):
            assert target.param.grad is not None
            w = target.param.detach()
            dropped.append(2 * w * ltp.band(w, tau, 1 / slope) * (w * target.param.grad + self.price))
        super().before_step(units, step)  # the gradient becomes g·m, and the thresholds move
        for target, terms in zip(units.targets, dropped, strict=True):
            assert target.param.grad is not None
            target.param.grad += terms


class Point(NamedTuple):
    """A run after an epoch: test accuracy in per cent, the kept share, the second layer's τ, its mean w²."""

    accuracy: float
    kept: float
    tau: float
    square: float


class Watch(lightning.Callback):
    """Notes a point an epoch, and the second layer's weights before the prune."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.weights, self.tau = torch.zeros(0), 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.weights = pl_module.net[4].weight.detach().clone()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        callback: LTPCallback = trainer.callbacks[0]
        taus = callback.thresholds() if callback.stage == "soft" else callback.final_thresholds
        assert taus is not None
        self.tau = float(taus[callback.units.names.index(LAYER)])
        accuracy, kept = (100 * float(x) for x in (trainer.callback_metrics["accuracy"], callback.kept()))
        self.points.append(Point(accuracy, kept, self.tau, float(self.weights.square().mean())))


def fit(module: Perceptron, seed: int, epochs: int, callbacks: Sequence[Any] = ()) -> float:
    """Trains on the digits; the accuracy on their test images in per cent."""
    lightning.seed_everything(seed, verbose=False)
    data = DigitsDataModule(image_size=None, batch_size=64, seed=seed)
    data.setup("fit")
    data.setup("test")
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data.train_dataloader(), data.test_dataloader())
    return 100 * float(trainer.callback_metrics["accuracy"])


def pruned(start: Perceptron, seed: int, epochs: int, callback: LTPCallback, decay: float = 0.0) -> Watch:
    """A run from the dense start."""
    module, watch = copy.deepcopy(start), Watch()
    module.lr, module.decay = 0.02, decay
    fit(module, seed, epochs, [callback, watch])
    return watch


def near(watch: Watch) -> tuple[Tensor, float]:
    """``(w² − τ)/τ`` of the layer, and of the weights that lie `AROUND` τ the share that is `CLOSE` to it."""
    distance = (watch.weights.square() / watch.tau - 1).flatten()
    counts = [int((distance.abs() < width).sum()) for width in (CLOSE, AROUND)]
    return distance, counts[0] / max(counts[1], 1)


def at_shares(points: Sequence[Point]) -> list[float | None]:
    """The accuracy as the kept share crosses each of `KEPT`, between the epochs around; None if it never does."""
    found: list[float | None] = []
    for share in KEPT:
        around = next(((a, b) for a, b in pairwise(points) if a.kept >= 100 * share > b.kept), None)
        if around is None:
            found.append(None)
        else:
            a, b = around
            found.append(a.accuracy + (b.accuracy - a.accuracy) * (a.kept - 100 * share) / (a.kept - b.kept))
    return found


def draw_penalties(runs: Mapping[str, Watch], file: Path) -> None:
    figure = new_figure(9, 2.6)
    for ax, field in zip(figure.subplots(1, 3), ("accuracy", "kept", "tau"), strict=True):
        for name, watch in runs.items():
            values = [getattr(p, field) for p in watch.points]
            ax.plot(range(1, len(values) + 1), values, label=name)
        ax.set(xlabel="epoch", title={"tau": "τ of the second layer"}.get(field, f"{field}, %"))
        ax.legend(fontsize=7)
    figure.savefig(file, dpi=80)


def draw_gap(runs: Mapping[str, Watch], file: Path) -> None:
    figure = new_figure(7, 2.6)
    for ax, (name, watch) in zip(figure.subplots(1, 2, sharey=True), runs.items(), strict=True):
        distance = near(watch)[0]
        ax.hist(distance[distance.abs() < AROUND].numpy(), bins=40)
        ax.axvline(0, color="tab:red", linewidth=1)
        ax.set(xlabel="(w² − τ)/τ", title=name)
    figure.savefig(file, dpi=80)


def draw_spread(runs: Sequence[Watch], dense: float, file: Path) -> None:
    figure = new_figure(4.5, 3)
    ax = figure.subplots()
    for watch in runs:
        ax.plot([p.kept for p in watch.points], [p.accuracy for p in watch.points], color="tab:blue", alpha=0.5)
    ax.axhline(dense, color="0.4", linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel="kept, %", ylabel="accuracy, %", title=f"{len(runs)} runs")
    figure.savefig(file, dpi=80)


def page(penalties: Mapping[str, Watch], gap: Mapping[str, Watch], runs: Sequence[Watch], dense: float) -> list[str]:
    """Markdown with the numbers that the figures show."""
    last = {name: watch.points[-1] for name, watch in penalties.items()}
    shares = list(zip(*(at_shares(watch.points) for watch in runs), strict=True))
    rows = [(share, [a for a in values if a is not None]) for share, values in zip(KEPT, shares, strict=True)]
    lines = ["| penalty | accuracy | kept | τ of the second layer | its mean w² |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {p.accuracy:.1f} | {p.kept:.1f} % | {p.tau:.2e} | {p.square:.2e} |" for n, p in last.items()]
    lines += [
        "",
        "![Accuracy, kept share and threshold under three penalties](../../docs/images/article_penalties.png)",
    ]
    lines += [
        "",
        "## The gap around the threshold",
        "",
        f"From here on thresholds move more slowly, `{SLOWER}`.",
        "",
    ]
    lines += [
        "| weights follow | weights with w² within 2 % of τ, of those within 20 % | kept | accuracy |",
        "|---|---|---|---|",
    ]
    for name, watch in gap.items():
        end = watch.points[-1]
        lines.append(f"| {name} | {near(watch)[1]:.1%} | {end.kept:.1f} % | {end.accuracy:.1f} |")
    lines += ["", "![Weights around the threshold, by gradient](../../docs/images/article_gap.png)"]
    lines += [
        "",
        "## The spread of runs",
        "",
        "| kept | runs that came there | mean | least | most |",
        "|---|---|---|---|---|",
    ]
    for share, values in rows:
        if values:
            ends = f"{statistics.mean(values):.2f} | {min(values):.2f} | {max(values):.2f}"
            lines.append(f"| {share:.0%} | {len(values)} | {ends} |")
    return [*lines, "", "![Accuracy against the kept share, by run](../../docs/images/article_spread.png)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--images", type=Path, default=Path("."), help="folder of the figures")
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_prune", "matplotlib.font_manager"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    clock = time.process_time()
    lightning.seed_everything(0, verbose=False)
    start = Perceptron()
    dense = fit(start, 0, 8)

    def made(seed: int, kind: type[LTPCallback] = LTPCallback, decay: float = 0.0, **options: Any) -> Watch:
        return pruned(start, seed, args.epochs, kind(**PAPER | options), decay)

    penalties = {"none": made(1, lam=0.0), "L2": made(1, decay=0.03, lam=0.0), "soft L0": made(1)}
    runs = [made(seed, **SLOWER) for seed in range(1, args.runs + 1)]
    gap = {"g·m (eq. 14)": runs[0], "the exact gradient": made(1, FullGradient, **SLOWER)}
    draw_penalties(penalties, args.images / "article_penalties.png")
    draw_gap(gap, args.images / "article_gap.png")
    draw_spread(runs, dense, args.images / "article_spread.png")
    lines = [
        "# The LTP article's ablations in small",
        "",
        f"`LTPCallback({', '.join(f'{k}={v!r}' for k, v in PAPER.items())})` on the 8×8 digits that come with "
        f"scikit-learn: 64-128-128-10 with BatchNorm, dense {dense:.1f} % of 360 test images (one is 0.28 %), then "
        f"{args.epochs} epochs from that start. What the method is worth is measured elsewhere.",
        "",
        "## Which penalty",
        "",
        *page(penalties, gap, runs, dense),
        "",
        *stamps([circumstances()]),
        f"{time.process_time() - clock:.0f} s of CPU time.",
    ]
    publish("\n".join(lines) + "\n", args.out)


if __name__ == "__main__":
    main()
