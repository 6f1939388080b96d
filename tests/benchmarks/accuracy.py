"""Accuracy after pruning on Fashion-MNIST: LTP next to global magnitude pruning and the dense network.

    python -m tests.benchmarks.accuracy --seeds 0 1 2 --compression 10 20 --out tests/benchmarks/accuracy.md

Each method starts from the same dense network, with the same budget, epochs, data order and optimizer. Fashion-MNIST
must be at hand (the Debian package dataset-fashion-mnist, or ``--root``).
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

from lightning_prune import LTPCallback, MagnitudeCallback, TimmClassifier, sparsity_report
from lightning_prune.zoo.data import FashionMNISTDataModule

METHODS: dict[str, Any] = {
    "LTP": LTPCallback,
    "magnitude, gradual": MagnitudeCallback,
    "magnitude, one-shot": lambda **kw: MagnitudeCallback(schedule="oneshot", **kw | {"sparsify": 0}),
}


def _fit(model: TimmClassifier, args: argparse.Namespace, epochs: int, seed: int, callbacks: list[Any]) -> float:
    data = FashionMNISTDataModule(root=args.root, subset=args.subset, batch_size=args.batch_size, seed=seed)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10, num_sanity_val_steps=0,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return float(trainer.test(model, datamodule=data, verbose=False)[0]["test/acc"])


def _model(args: argparse.Namespace, lr: float) -> TimmClassifier:
    return TimmClassifier(
        args.model, model_kwargs={"width": args.width} if args.width else None, optimizer="sgd", lr=lr,
        weight_decay=5e-4,
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, list[float]]:
    """Test accuracies by row name, one a seed; prints each as it comes."""
    rows: dict[str, list[float]] = {}

    def note(name: str, accuracy: float) -> None:
        rows.setdefault(name, []).append(accuracy)
        print(f"{name}: {accuracy:.4f}", flush=True)

    for seed in args.seeds:
        lightning.seed_everything(seed, verbose=False)
        dense = _model(args, args.lr)
        note("dense", _fit(dense, args, args.dense_epochs, seed, []))
        start = copy.deepcopy(dense.state_dict())
        if args.dense_longer:
            model = _model(args, args.prune_lr)
            model.load_state_dict(start)
            note("dense, trained on", _fit(model, args, args.sparsify + args.finetune, seed + 100, []))
        for compression in args.compression:
            for name in args.methods:
                lightning.seed_everything(seed, verbose=False)
                model = _model(args, args.prune_lr)
                model.load_state_dict(start)
                callback = METHODS[name](target_compression=compression, sparsify=args.sparsify)
                clock = time.process_time()
                accuracy = _fit(model, args, args.sparsify + args.finetune, seed + 100, [callback])
                report = sparsity_report(model)
                note(f"{name}, {compression:g}x", accuracy)
                keeps = sorted(1 - layer.sparsity for layer in report.layers)
                print(
                    f"    {report.compression:.3f}x, keeps {keeps[0]:.2f}..{keeps[-1]:.2f}, "
                    f"{time.process_time() - clock:.0f} s CPU",
                    flush=True,
                )
    return rows


def table(rows: dict[str, list[float]], args: argparse.Namespace) -> str:
    """Markdown: mean and spread of each row."""
    lines = [
        f"Fashion-MNIST, {args.subset} training images, {args.model} width {args.width or 'default'}, "
        f"seeds {args.seeds}, {args.dense_epochs} dense epochs, then {args.sparsify} sparsify + "
        f"{args.finetune} finetune epochs "
        f"({datetime.date.today()}).",
        "",
        "| network | test accuracy, mean | by seed |",
        "|---|---|---|",
    ]
    for name, values in rows.items():
        each = ", ".join(f"{100 * v:.2f}" for v in values)
        lines.append(f"| {name} | {100 * statistics.mean(values):.2f} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--subset", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--compression", type=float, nargs="+", default=[10, 20])
    parser.add_argument("--methods", nargs="+", default=["LTP", "magnitude, gradual"], choices=list(METHODS))
    parser.add_argument("--dense-epochs", type=int, default=10)
    parser.add_argument("--sparsify", type=int, default=8)
    parser.add_argument("--finetune", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--prune-lr", type=float, default=0.05)
    parser.add_argument("--dense-longer", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    text = table(run(args), args)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
