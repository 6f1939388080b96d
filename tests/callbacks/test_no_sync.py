"""The hot path asks the device for nothing: on meta tensors, which have no values to give, each step still runs.

Whatever waits for the device (``.item()``, ``bool(tensor)``, ``tolist``, indexing by a mask) raises there. Nor does it
send a list to the device, for which that has to be done with what it was given before.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import lightning
import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_prune import (
    ChannelGraph,
    ChannelPruning,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    ST3Callback,
    STRCallback,
    TaylorWeightCallback,
)
from lightning_prune.callbacks.families.target import Costs
from lightning_prune.callbacks.phases import Phases
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional import path
from lightning_prune.masks import attach, detach
from tests.toy import Toy, network

METHODS: dict[str, Any] = {
    "ltp": LTPCallback(target_sparsity=0.8),
    "ltp, fading": LTPCallback(target_sparsity=0.8, gate="fading"),
    "ltp, held": LTPCallback(target_sparsity=0.8, gate="held"),
    "ltp, a price": LTPCallback(lam=1e-3),
    "ltp, as in the paper": LTPCallback(mode="paper", lam=1e-6, threshold_lr=1e-6),
    "ltp, macs": LTPCallback(target_macs=0.4),
    "magnitude": MagnitudeCallback(target_sparsity=0.8, feedback=0.5),
    "magnitude, macs": MagnitudeCallback(target_macs=0.4, feedback=0.5),
    "str": STRCallback(target_sparsity=0.8),
    "st3": ST3Callback(target_sparsity=0.8),
    "taylor weights": TaylorWeightCallback(target_sparsity=0.8),
    "mrts": MRTSCallback(target_macs=0.5),
    "slimming": NetworkSlimmingCallback(target_macs=0.5),
}
MACS = {"net.0.weight": 4608, "net.3.weight": 10368, "net.8.weight": 64}


def on_meta(callback: Any) -> tuple[Toy, torch.optim.Optimizer, lightning.Trainer]:
    """A module without values, in the middle of the callback's sparsify phase."""
    with torch.device("meta"):
        module = Toy()
    optimizer = module.configure_optimizers()
    trainer: Any = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        log_every_n_steps=0,
    )  # fmt: skip
    trainer.fit_loop.max_batches = 1000
    trainer.strategy.optimizers = [optimizer]
    callback.reset()
    callback.stage, callback.seen, callback.phases = "soft", 3, Phases(0, 2000, 3000)
    if isinstance(callback, ChannelPruning):
        dense = network()
        graph = ChannelGraph.trace(dense, torch.zeros(2, 1, 8, 8))
        callback.start(ChannelUnits.of(dense, graph, scales_only=True))  # looks at each layer, once a phase
        callback.root, callback.units = module.net, ChannelUnits.of(module.net, graph, scales_only=True)
        callback.factors = callback.units.scales.to(torch.device("meta"))
        for name, tensor in callback.tensors().items():
            setattr(callback, f"_{name}", tensor.to("meta"))
    else:
        callback.root = module
        callback.prepare(trainer, module)
        if callback.target.macs is not None:  # counted on a batch, once a phase
            callback.target.costs = Costs(sum(MACS.values()), MACS)
            callback.choose(callback.trained(trainer), last=True)
        with patch.object(path, "lean_to_magnitude", lambda log_r, *_: log_r):  # looks at each layer, once a phase
            callback.start(callback.units)
    callback._gates = dict(callback.gates(callback.units))
    attach(callback.root, callback._gates)
    callback._guard.watch([optimizer], callback.watched())
    for name, tensor in callback.tensors().items():
        if name == "steps":  # counted on the host; at the first, LTP measures its layers
            assert tensor.device.type == "cpu"
            tensor.fill_(15)
    return module, optimizer, trainer


def step(callback: PruningCallback, module: Toy, optimizer: torch.optim.Optimizer, trainer: lightning.Trainer) -> None:
    """A training step, as Lightning drives it."""
    batch = torch.zeros(8, 1, 8, 8, device="meta"), torch.zeros(8, dtype=torch.int64, device="meta")
    callback.on_train_batch_start(trainer, module, batch, 0)
    optimizer.zero_grad()
    F.cross_entropy(module(batch[0]), batch[1]).backward()
    callback.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    callback.seen += 1


class NothingSent(TorchFunctionMode):
    """Raises where a tensor on the device is made of a list, or of one on the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [a.is_meta for a in args if torch.is_tensor(a)]
        moved = func in (torch.as_tensor, torch.Tensor.to, torch.Tensor.copy_) and not (given and all(given))
        if moved or func in (torch.tensor, torch.Tensor.new_tensor):
            assert not out.is_meta, f"{func.__name__} sends values to the device"
        return out


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_the_sparsify_phase_does_not_wait_for_the_device(method: str) -> None:
    callback = METHODS[method]
    begun = on_meta(callback)
    for number in range(16, 21):  # all that is done now and then is due at the twentieth
        with NothingSent() if 16 < number < 20 else nullcontext():
            step(callback, *begun)
    detach(callback.root)


def test_what_waits_for_the_device_is_seen() -> None:
    callback = METHODS["ltp"]
    begun = on_meta(callback)
    callback.tensors()["steps"].zero_()  # the layers are measured: twenty times a phase, not each step
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step(callback, *begun)
    detach(callback.root)
