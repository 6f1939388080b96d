"""The paper's Figures 3 and 6: scale factors of two layers after the sparsify phase, with L1 and with MR.

    python -m tests.benchmarks.histograms --out scales.png

Trains vgg16_bn_cifar on the bundled digits. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch

from lightning_prune import MRTSCallback, NetworkSlimmingCallback, TimmClassifier
from lightning_prune.plots import scale_histograms
from lightning_prune.zoo.data import DigitsDataModule

METHODS = {"L1": NetworkSlimmingCallback, "MR": MRTSCallback}


class Keep(lightning.Callback):
    """The scale factors of all norms at the end of the sparsify phase."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.factors = callback, {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.callback.stage == "soft":
            factors = self.callback.factors
            self.factors = {n: p.detach().clone() for n, p in zip(factors.names, factors.params, strict=True)}


def factors(method: str, width: int, epochs: int) -> dict[str, torch.Tensor]:
    """Scale factors by norm after half of the training in the sparsify phase."""
    lightning.seed_everything(0, verbose=False)
    callback = METHODS[method](target_macs=0.4, warmup=0.3, sparsify=0.5)
    keep = Keep(callback)
    model = TimmClassifier("vgg16_bn_cifar", model_kwargs={"width": width})
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[callback, keep], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=32))
    return keep.factors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--layers", type=int, nargs=2, default=[2, 9], help="which two norms, counted from 0")
    parser.add_argument("--out", type=Path, default=Path("scales.png"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = {}
    for method in METHODS:
        found = factors(method, args.width, args.epochs)
        names = list(found)
        rows[method] = {names[i]: found[names[i]] for i in args.layers}
        for name, value in rows[method].items():
            size = value.abs()
            print(
                f"{method} {name}: {float((size < 0.1 * size.max()).float().mean()):.0%} below a tenth of the largest, "
                f"{float((size > 0.5 * size.max()).float().mean()):.0%} above half of it"
            )
    scale_histograms(rows).savefig(args.out, dpi=150)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
