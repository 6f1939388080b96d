"""The sweep over torchvision: prunes every architecture that it lists, and writes down what happened.

    python -m tests.sweep.torchvision --out tests/sweep/torchvision.jsonl
    python -m tests.sweep.torchvision --table tests/sweep/torchvision.md --out tests/sweep/torchvision.jsonl

As `tests.sweep.channels`, with the L1 norm as the score, which needs no BatchNorm. A detector, which gives as many
boxes as it finds and so cannot be traced as a whole, is pruned through its backbone, and proved in the whole; which
parts the error of the whole names is written down beside. It keeps boxes of any score here, as those of random weights
are low, and sees images of 160 pixels where it would enlarge them to 800.
Quantizable networks are taken as they are before anything is quantized. Nothing is downloaded. The rows are committed,
so that a run goes on where the last one was stopped.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from lightning_prune.channels import prune_channels
from lightning_prune.channels.graph.modes import trace_modes
from lightning_prune.errors import TraceError
from tests.sweep.channels import failure, record, rows_of_weights, sweep, trained, verdict
from tests.sweep.channels_table import RATIO
from tests.sweep.networks import randomise

SIZES = (64, 96, 128, 224, 256, 320)
FRAMES = {"mvit": 16, "s3d": 16}
"""Of the videos of these families; others get 4 frames."""
DETECTED = 160
"""Pixels of the shorter side that a detector enlarges images to, unless its size is fixed."""


def kind(name: str) -> str:
    """The module of torchvision that an architecture is in: "detection", "video", ...; "" of a classifier."""
    return models.get_model_builder(name).__module__.removeprefix("torchvision.models").strip(".").partition(".")[0]


def make(name: str) -> nn.Module:
    """The dense network, weights at random."""
    torch.manual_seed(0)
    sort = kind(name)
    options: dict[str, Any] = {"weights_backbone": None} if sort in ("detection", "segmentation") else {}
    if name in ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3"):
        options["init_weights"] = False  # takes a minute and is overwritten
    model: nn.Module = models.get_model(name, weights=None, **options)
    for module in model.modules() if sort == "detection" else ():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
        if isinstance(module, GeneralizedRCNNTransform):
            module.min_size = (DETECTED,)
    return model


def listing() -> list[dict[str, Any]]:
    """[{name, parameters}] of all architectures, smallest first; before the others, the smallest of each family."""
    rows = [
        {"name": name, "parameters": next(iter(models.get_model_weights(name))).meta["num_params"]}
        for name in models.list_models()
    ]
    rows.sort(key=lambda row: (row["parameters"], row["name"]))
    first = {models.get_model_builder(row["name"]).__module__: row for row in reversed(rows)}.values()
    return [*(row for row in rows if row in first), *(row for row in rows if row not in first)]


def randomised(name: str, example: Tensor) -> nn.Module:
    """The dense network with norms calibrated on an example."""
    model = make(name)
    randomise(model, example)
    return model


def inputs(name: str, size: int) -> Any:
    """What a network takes, images of size x size."""
    generator = torch.Generator().manual_seed(0)
    sort = kind(name)

    def images(*shape: int) -> Tensor:
        return torch.rand(*shape, size, size, generator=generator)

    if sort == "video":
        return images(2, 3, next((f for family, f in FRAMES.items() if name.startswith(family)), 4))
    if sort == "optical_flow":
        return images(1, 3), images(1, 3)
    return ([images(3), images(3)],) if sort == "detection" else images(2, 3)


def runnable(name: str, model: nn.Module) -> Any:
    """The smallest input that the dense network runs on, norms calibrated on it where it takes one tensor."""
    for size in SIZES:
        example = inputs(name, size)
        try:
            if isinstance(example, Tensor):
                randomise(model, example)
            elif kind(name) == "detection":
                randomise(model, example[0], norms_alone=True)
            with torch.no_grad():
                model.eval()(*(example if isinstance(example, tuple) else (example,)))
            return example
        except Exception as error:
            if size == SIZES[-1]:
                raise RuntimeError(f"the dense model itself does not run at {SIZES}: {error}") from error
    raise AssertionError


def advice_on_the_whole(model: nn.Module, example: Any) -> str:
    """What the error says, that a detector as a whole ends in, of the parts to prune instead."""
    try:
        trace_modes(model, example)
    except TraceError as error:
        _, found, parts = str(error).partition("A part of it can be traced")
        return f"as a whole: not traced; a part can be{parts}" if found else "as a whole: not traced, and no part named"
    return "as a whole: traced"


def run_one(name: str) -> dict[str, Any]:
    """Prunes one architecture; never raises."""
    row: dict[str, Any] = {"name": name}
    try:
        model = make(name)
        example = runnable(name, model)
        leaf = next(t for t in torch.utils._pytree.tree_leaves(example) if isinstance(t, Tensor))
        row |= {"parameters": sum(p.numel() for p in model.parameters()), "size": leaf.shape[-1]}
        part = "backbone" if kind(name) == "detection" else None
        told = [advice_on_the_whole(model, example)] if part else []
        start = time.process_time()
        done = prune_channels(model, example, score="l1", ratio=RATIO, network=part)
        row["seconds"] = round(time.process_time() - start, 2)
        row |= record(done, rows_of_weights(done.graph))
        row["notes"] = [*told, *row["notes"]]
        row["after"] = sum(p.numel() for p in model.parameters())
        row["status"] = f"{verdict(done)}, {part} alone" if part else verdict(done)
        if isinstance(example, Tensor):
            row |= trained(model, example, lambda: randomised(name, example))
        else:
            row |= {"stuck": None, "notes": ["no train step: it wants targets", *row["notes"]]}
    except Exception as error:
        row |= failure(error)
    return row


if __name__ == "__main__":
    sweep(
        __doc__ or "", "tests/sweep/torchvision.jsonl", listing, run_one,
        title="Channel surgery on every architecture of torchvision", library=f"torchvision {torchvision.__version__}",
        counted="channels of convolutions and linear layers", how="by the L1 norm",
        command="python -m tests.sweep.torchvision",
    )  # fmt: skip
