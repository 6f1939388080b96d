"""The paper's ablation on Fashion-MNIST: Network Slimming, with MR, with TS, with both, and L1-norm filter pruning.

    python -m tests.benchmarks.channels --seeds 0 1 2 --out tests/benchmarks/channels.md

Each method starts from the same dense network, with the same epochs, data order and optimizer. First all at equal MACs;
then, as in the paper's Figure 8, with what the rule itself decides: half of all channels for a global threshold, δ for
threshold selection. Fashion-MNIST must be at hand (the Debian package dataset-fashion-mnist, or ``--root``).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from lightning_prune import ChannelPruning, MRTSCallback, NetworkSlimmingCallback, TimmClassifier
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scores.norm import filter_norm
from lightning_prune.zoo.data import FashionMNISTDataModule
from tests.benchmarks.bench.watch import Watch

NETWORKS = {"vgg16_bn_cifar": 16, "resnet56_cifar": 8}


class FilterNorm(ChannelPruning):
    """Li et al. 2017: the same share of filters goes in every layer, those of least L1 norm; nothing is regularized."""

    scales_only = True

    def score(self, units: ChannelUnits) -> Tensor:
        """The rank of each group in its layer, in (0, 1], by the L1 norm of its filters."""
        norms = {n: filter_norm(w, 1) / w[0].numel() for n, w in units.weights().items() if w.ndim == 4}
        score = units.aggregate(norms, "sum")
        for i in range(len(units.layers)):
            mine = units.layer == i
            score[mine] = (score[mine].argsort().argsort() + 1).double() / int(mine.sum())
        return score


METHODS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "NS": (NetworkSlimmingCallback, {}, {"target_channels": 0.5}),
    "NS + MR": (MRTSCallback, {"rule": "global"}, {"target_channels": 0.5}),
    "NS + TS": (NetworkSlimmingCallback, {"rule": "mass"}, {"delta": 1e-3}),
    "NS + MR + TS (MRTS)": (MRTSCallback, {}, {"delta": 1e-3}),
    "filter norm": (FilterNorm, {}, {}),
}


def _fit(model: TimmClassifier, args: argparse.Namespace, epochs: int, seed: int, callback: Any) -> tuple[float, float]:
    """Test accuracy (right after the removal, at the end)."""
    data = FashionMNISTDataModule(root=args.root, subset=args.subset, batch_size=args.batch_size, seed=seed)
    callbacks = [] if callback is None else [callback, Watch(callback, data)]
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10, num_sanity_val_steps=0,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    final = float(trainer.test(model, datamodule=data, verbose=False)[0]["test/acc"])
    return (callbacks[1].accuracy if callbacks else final), final


def _model(name: str, width: int, lr: float) -> TimmClassifier:
    return TimmClassifier(name, model_kwargs={"width": width}, optimizer="sgd", lr=lr, weight_decay=5e-4)


def run(name: str, width: int, args: argparse.Namespace) -> dict[str, list[tuple[float, float, float]]]:
    """(accuracy after the removal, at the end, MACs left) by row, one a seed; prints each as it comes."""
    rows: dict[str, list[tuple[float, float, float]]] = {}

    def note(row: str, values: tuple[float, float, float], more: str = "") -> None:
        rows.setdefault(row, []).append(values)
        print(f"{name} {row}: {values[0]:.4f} -> {values[1]:.4f} at {values[2]:.3f} of the MACs {more}", flush=True)

    for seed in args.seeds:
        lightning.seed_everything(seed, verbose=False)
        dense = _model(name, width, args.lr)
        _, accuracy = _fit(dense, args, args.dense_epochs, seed, None)
        note("dense", (accuracy, accuracy, 1.0))
        start = copy.deepcopy(dense.state_dict())
        budgets = [(f"{share:g} of the MACs", {"target_macs": share}) for share in args.macs]
        for label, budget in [*budgets, *([] if args.no_free else [("its own", None)])]:
            for method, (kind, options, own) in METHODS.items():
                if method not in args.methods or (budget is None and not own):
                    continue
                lightning.seed_everything(seed, verbose=False)
                model = _model(name, width, args.prune_lr)
                model.load_state_dict(start)
                callback = kind(**options, **(own if budget is None else budget), warmup=0, sparsify=args.sparsify)
                clock = time.process_time()
                before, after = _fit(model, args, args.sparsify + args.finetune, seed + 100, callback)
                numbers = callback.numbers
                note(
                    f"{method}, {label}", (before, after, numbers["macs"]),
                    f"(channels left {numbers['channels']:.3f}, gap {numbers.get('gap', 0):.2f}, "
                    f"{time.process_time() - clock:.0f} s CPU)",
                )  # fmt: skip
    return rows


def table(name: str, width: int, rows: dict[str, list[tuple[float, float, float]]], args: argparse.Namespace) -> str:
    """Markdown: mean over seeds, and each seed."""
    lines = [
        f"Fashion-MNIST, {args.subset} training images, {name} width {width}, seeds {args.seeds}, "
        f"{args.dense_epochs} dense epochs, then {args.sparsify} sparsify + {args.finetune} finetune epochs "
        f"({datetime.date.today()}).",
        "",
        "| method, budget | MACs left | right after the removal | after finetune | by seed |",
        "|---|---|---|---|---|",
    ]
    for row, values in rows.items():
        before, after, macs = (statistics.mean(v) for v in zip(*values, strict=True))
        each = ", ".join(f"{100 * v[1]:.2f}" for v in values)
        lines.append(f"| {row} | {macs:.3f} | {100 * before:.2f} | {100 * after:.2f} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--subset", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.3])
    parser.add_argument("--no-free", action="store_true", help="only equal MACs")
    parser.add_argument("--dense-epochs", type=int, default=6)
    parser.add_argument("--sparsify", type=int, default=4)
    parser.add_argument("--finetune", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--prune-lr", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_prune").setLevel(logging.ERROR)
    texts = [table(name, NETWORKS[name], run(name, NETWORKS[name], args), args) for name in args.networks]
    print("\n".join(texts))
    if args.out:
        args.out.write_text("\n".join(texts))


if __name__ == "__main__":
    main()
