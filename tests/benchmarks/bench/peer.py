"""Torch-Pruning on transformers and ConvNeXts as its own examples do it; a peer to compare with, no dependency."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.support.macs import count_macs


class Cut(NamedTuple):
    """What is left of a network.

    Attributes:
        model: the compact network.
        macs: share left, by PyTorch's counter.
        difference: of it and the dense network with the same rows at zero, relative to the largest output, in float64.
    """

    model: nn.Module
    macs: float
    difference: float


def is_there() -> bool:
    """Whether Torch-Pruning is installed."""
    return find_spec("torch_pruning") is not None


def cut(
    dense: nn.Module, example: Tensor, macs: float, stream: bool, batches: Sequence[Any] = (), tries: int = 6
) -> Cut:
    """A compact copy with at most that share of the MACs: the largest found by bisection of Torch-Pruning's ratio.

    Ranked over layers of like structure (its ``isomorphic``), in steps of 8 channels, by its Taylor score on
    ``batches`` of (images, labels), or by its L1 score without.

    Args:
        stream: whether layers that write the residual stream may lose channels too; its ViT example offers both
            ("bottleneck").
        tries: copies that are cut.
    """
    dense = copy.deepcopy(dense).eval()
    whole, low, high, best = count_macs(dense, example), 0.0, 1.0, None
    for _ in range(tries):
        ratio = (low + high) / 2
        model, masked = _cut(dense, example, ratio, stream, batches)
        share = count_macs(model, example) / whole
        low, high = (ratio, high) if share > macs else (low, ratio)
        if share <= macs and (best is None or share > best[2]):
            best = model, masked, share
    if best is None:
        raise ValueError(f"none of {tries} ratios leaves {macs} of the MACs; the last left {share:.3f}.")
    with torch.no_grad():
        x = example.double()
        out, wanted = (copy.deepcopy(m).double().eval()(x) for m in best[:2])
    return Cut(best[0], best[2], float((out - wanted).abs().max() / wanted.abs().max()))


def _cut(
    dense: nn.Module, example: Tensor, ratio: float, stream: bool, batches: Sequence[Any]
) -> tuple[nn.Module, nn.Module]:
    """A compact copy, and a dense one in which the same rows are zero."""
    import torch_pruning as tp

    model, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    attention = [m for m in model.modules() if hasattr(m, "qkv")]
    ignored = [model.get_classifier()]  # type: ignore[operator]
    ignored += [] if stream else [m for name, m in model.named_modules() if name.endswith("mlp.fc2")]
    score = tp.importance.GroupTaylorImportance() if batches else tp.importance.GroupMagnitudeImportance(p=1)
    pruner = tp.pruner.BasePruner(
        model, example, importance=score, pruning_ratio=ratio, global_pruning=True, isomorphic=True, round_to=8,
        ignored_layers=ignored, num_heads={m.qkv: m.num_heads for m in attention}, in_channel_groups={},
        out_channel_groups={},
    )  # fmt: skip
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    names = {id(m): name for name, m in (*model.named_modules(), *model.named_parameters())}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            if pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                _silence(masked, names.get(id(dependency.target.module), ""), [int(i) for i in indices])
        group.prune()
    for m in attention:
        m.num_heads = pruner.num_heads[m.qkv]
        m.attn_dim = m.qkv.out_features // 3
        m.head_dim = m.attn_dim // m.num_heads
    model.zero_grad()
    return model, masked


@torch.no_grad()
def _silence(model: nn.Module, name: str, rows: list[int]) -> None:
    """Zeros in the rows of a layer, or in the last dim of a parameter; what has no name has no weights."""
    parameters = dict(model.named_parameters())
    if name in parameters:
        parameters[name][..., rows] = 0.0
    for each in ("weight", "bias"):
        if name and f"{name}.{each}" in parameters:
            parameters[f"{name}.{each}"][rows] = 0.0
