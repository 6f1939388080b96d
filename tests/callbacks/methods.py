"""The one table of methods that the tests run through, a short fit of one, and what is measured of a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune import (
    ANPVSCallback,
    FLOPCallback,
    FPGMCallback,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    PruningFromScratchCallback,
    SANPCallback,
    ScorePruningCallback,
    ST3Callback,
    STRCallback,
    TASCallback,
    TaylorWeightCallback,
)
from tests.callbacks import toys
from tests.toy import Toy, loaders, network, trainer, zeros

Make = Callable[..., PruningCallback]


def oneshot(**options: Any) -> MagnitudeCallback:
    return MagnitudeCallback(schedule="oneshot", **options)


WEIGHTS: dict[str, Make] = {
    "ltp": LTPCallback,
    "magnitude": MagnitudeCallback,
    "oneshot": oneshot,
}
RIVALS: dict[str, Make] = {  # what LTP is measured against: `test_rivals` runs them through the core of the promises
    "ltp held": partial(LTPCallback, gate="held"),
    "ltp sigmoid": partial(LTPCallback, gate="sigmoid"),
    "str": STRCallback,
    "st3": ST3Callback,
    "taylor weights": TaylorWeightCallback,
}
CHANNELS: dict[str, Make] = {
    "mrts": MRTSCallback,
    "slimming": NetworkSlimmingCallback,
    "fpgm": FPGMCallback,
}
GRADIENTS: dict[str, Make] = {"taylor": ScorePruningCallback}  # looks at batches; "fpgm" is the same with weights alone
FACTORS: dict[str, Make] = {"flop": FLOPCallback}
FRESH: dict[str, Make] = {"from scratch": PruningFromScratchCallback}  # `test_from_scratch` runs it through the core
SCALES: dict[str, Make] = {name: CHANNELS[name] for name in ("mrts", "slimming")}
TOY_WEIGHTS: dict[str, Make] = {
    "toy score": toys.WeightScore, "toy statistics": toys.WeightStatistics, "toy gates": toys.WeightGates
}  # fmt: skip
TOY_CHANNELS: dict[str, Make] = {
    "toy channel statistics": toys.ChannelStatistics, "toy channel gates": toys.ChannelGates
}  # fmt: skip
STEPS: dict[str, Make] = {  # methods with training steps of their own: `test_own_steps` runs them through the core
    "anp-vs": partial(ANPVSCallback, attack_steps=2, eps=0.1, attack_step=0.05),
    "sanp": partial(SANPCallback, spm_lr=0.05),
    "tas": TASCallback,
}
GATED: dict[str, Make] = {"mrts gates": partial(MRTSCallback, scales="gates")}  # `test_scale_gates` runs them so
SPARSE_MACS: dict[str, Make] = {"ltp macs": LTPCallback}  # with a target of MACs; `test_sparse_macs` runs it so
METHODS: dict[str, Make] = (
    WEIGHTS | CHANNELS | GRADIENTS | FACTORS | TOY_WEIGHTS | TOY_CHANNELS | RIVALS | FRESH | STEPS | GATED | SPARSE_MACS
)

# 8 batches an epoch: the sparsify phase begins at 8 and ends at 32
PHASES: dict[str, Any] = {"warmup": 1, "sparsify": 3, "recalibrate_batches": 2}


N = 8 * 9 + 16 * 8 * 9 + 16 * 4  # prunable weights of the toy network
SPARSE = 0.4  # the target of sparse MACs: with less, a layer of 72 weights that each cost most keeps hardly one


def removes_channels(name: str) -> bool:
    """Whether a method's outcome is smaller shapes; else it is zeros."""
    return name in CHANNELS | GRADIENTS | TOY_CHANNELS | FACTORS | FRESH | STEPS | GATED


def target(name: str) -> dict[str, float]:
    """A target of the method's kind: half of the MACs or the parameters, or a fifth of the weights or their MACs."""
    if name in FACTORS:
        return {"target_params": 0.5}
    if name in SPARSE_MACS:
        return {"target_macs": SPARSE}
    return {"target_macs": 0.5} if removes_channels(name) else {"target_sparsity": 0.8}


def run(path: Path, method: str, module: Any = None, **options: Any) -> tuple[Any, Any, lightning.Trainer]:
    """`fit` with a method of the table, by name, and its kind of target."""
    given = options.pop("options", {})
    return fit(path, METHODS[method], module, options=target(method) | given, **options)


def fit(
    path: Path,
    make: Make,
    module: lightning.LightningModule | None = None,
    callbacks: Iterable[Any] = (),
    data: dict[str, Any] | None = None,
    ckpt_path: Any = None,
    options: dict[str, Any] | None = None,
    **trainer_options: Any,
) -> tuple[Any, Any, lightning.Trainer]:
    """Six epochs of the toy module with the callback that ``make(**options)`` gives."""
    torch.manual_seed(0)
    module = Toy() if module is None else module
    callback = make(**(PHASES | (options or {})))
    done = trainer(path, [callback, *callbacks], enable_checkpointing=True, **trainer_options)
    done.fit(module, **(data or loaders()), ckpt_path=ckpt_path)
    return module, callback, done


def keep_all(path: Path, every: int = 3) -> ModelCheckpoint:
    """A checkpoint every few steps, mid-epoch ones included."""
    return ModelCheckpoint(dirpath=path, filename="{step}", every_n_train_steps=every, save_top_k=-1)


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same bits under the same names."""
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(
        x.shape == y.shape and torch.equal(x, y) for x, y in zip(one.values(), two.values(), strict=True)
    )


def size(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


def macs(network: nn.Module, shape: tuple[int, ...] = (1, 1, 8, 8)) -> float:
    """Multiply-accumulates of one sample, by PyTorch's own counter."""
    was = network.training
    # The counter knows matrix products, and nothing of the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(shape, dtype=next(network.parameters()).dtype))
    network.train(was)
    return counter.get_total_flops() / 2


def sparse_macs(network: nn.Module, shape: tuple[int, ...] = (1, 1, 8, 8)) -> tuple[float, float]:
    """MACs of one sample with weights that are not zero, and the most that one weight takes part in."""
    uses: dict[nn.Module, int] = {}

    def note(layer: nn.Module, args: object, out: torch.Tensor) -> None:
        each = out.numel() // out.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        uses[layer] = uses.get(layer, 0) + each

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(note) for m in layers]
    dense = macs(network, shape)
    for handle in handles:
        handle.remove()
    zeros = [(n, int((layer.weight == 0).sum())) for layer, n in uses.items()]
    return dense - sum(n * z for n, z in zeros), max(uses.values())


def prunable(network: nn.Module) -> list[nn.Parameter]:
    """Weights of convolutions and linear layers that train, shared ones once."""
    found = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.requires_grad]
    return list(dict.fromkeys(found))


def check_budget(method: str, module: nn.Module, dense: nn.Module | None = None, beside: float = 0.0) -> None:
    """The target was met, by PyTorch's own counter or by counting zeros and their uses.

    Args:
        method: of the table.
        module: what was pruned; a module with ``net`` is judged by that.
        dense: the same before the fit; None: the toy network.
        beside: MACs of what is not pruned, and counts whole where the target is one of sparse MACs.
    """
    pruned = getattr(module, "net", module)
    dense = network() if dense is None else dense
    if method in FACTORS:
        assert 0.5 * size(dense) - (16 + 72) < size(pruned) <= 0.5 * size(dense)  # a component of the second layer
        assert zeros(pruned) == 0
    elif removes_channels(method):
        assert 0.375 * macs(dense) <= macs(pruned) <= 0.5 * macs(dense)  # a channel of the first layer is an eighth
        assert zeros(pruned) == 0
    elif method in SPARSE_MACS:
        left, step = sparse_macs(pruned)
        goal = SPARSE * (macs(dense) + beside)
        assert goal - step < left + beside <= goal
        assert size(pruned) == size(dense)
    else:
        weights = prunable(pruned)
        left, whole = (sum(count(w) for w in weights) for count in (torch.count_nonzero, torch.numel))
        assert abs(int(left) - 0.2 * whole) <= 1
        assert size(pruned) == size(dense)
