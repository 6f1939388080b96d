"""The promises × every method: what is left on the module, and what copies of it hold, whatever happens."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_prune import PruningCallback, plan_of
from lightning_prune.callbacks.method import PruningMethod
from tests.callbacks.methods import METHODS, PHASES, SCALES, check_budget, run, target
from tests.toy import Toy, loaders, network, ours_left_on, trainer


def has_gates(method: str, callback: PruningCallback) -> bool:
    return type(callback).gates is not PruningMethod.gates and method not in SCALES  # the toy's norms have factors


def check_plain(module: Toy) -> None:
    assert not ours_left_on(module)
    if plan_of(module) is not None:  # what was made two is one again
        module = copy.deepcopy(module)
        plan_of(module).undo(module)
    assert {type(m) for m in module.net} == {type(m) for m in network()}
    assert list(module.state_dict()) == list(Toy().state_dict())
    assert not any(key.startswith("on_") for key in vars(module))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_nothing_is_left_on_the_module(method: str, tmp_path: Path) -> None:
    """`test_table` has modules that are built in ``setup`` and ``configure_model``."""
    during: dict[str, set[bool]] = {"dense": set(), "soft": set(), "pruned": set()}

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            during[trainer.callbacks[0].stage].add(bool(ours_left_on(pl_module)))

    module, callback, _ = run(tmp_path, method, callbacks=[Watch()])
    check_plain(module)
    # Warm-up and finetune run on a plain module, but for a training step that stands to the end.
    assert during == {"dense": {False}, "soft": {has_gates(method, callback)}, "pruned": {callback.trains_to_the_end}}


def test_copies_in_the_sparsify_phase_are_plain(method: str, tmp_path: Path) -> None:
    copies: list[Any] = []

    class Copy(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.callbacks[0].stage == "soft" and not copies:
                copies.append(copy.deepcopy(pl_module.net))
                copies.append(pickle.loads(pickle.dumps(pl_module.net)))
                copies.append({n: p.detach().clone() for n, p in pl_module.net.named_parameters()})

    run(tmp_path, method, callbacks=[Copy()])
    *nets, raw = copies
    for net in nets:
        assert not ours_left_on(net)
        assert [type(m) for m in net] == [type(m) for m in network()]
        assert all(torch.equal(p, raw[n]) for n, p in net.named_parameters())
        net(torch.zeros(1, 1, 8, 8)).sum().backward()


def test_an_exception_leaves_a_plain_module_and_a_second_fit_works(method: str, tmp_path: Path) -> None:
    check_exception(method, "training_step", tmp_path)


@pytest.mark.parametrize("method", ["ltp", "mrts", "flop"])
def test_an_exception_in_validation_does_too(method: str, tmp_path: Path) -> None:
    check_exception(method, "validation_step", tmp_path)


def check_exception(method: str, where: str, tmp_path: Path) -> None:
    """A fit that fails in the sparsify phase, and one after it."""
    module, calls = Toy(), []
    original = getattr(module, where)

    def broken(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == (20 if where == "training_step" else 5):  # two batches check the validation at the start
            raise ZeroDivisionError("on purpose")
        return original(*args)

    setattr(module, where, broken)
    callback = METHODS[method](**PHASES | target(method) | {"warmup": 0})
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        trainer(tmp_path, [callback]).fit(module, **loaders())
    assert callback.stage == "soft"
    delattr(module, where)
    check_plain(module)
    trainer(tmp_path, [callback]).fit(module, **loaders())
    assert callback.stage == "pruned"
    check_plain(module)
    check_budget(method, module)


class Tied(Toy):
    """Two linear layers share one weight, and one convolution is used twice."""

    def __init__(self) -> None:
        super().__init__()
        tied, shared = nn.Linear(16, 16), nn.Conv2d(16, 16, 1)
        self.net = nn.Sequential(
            *network()[:6], shared, nn.ReLU(), shared, *network()[6:8], tied, nn.Linear(16, 16), nn.Linear(16, 4)
        )
        self.net[12].weight = tied.weight


def test_shared_weights_stay_shared(method: str, tmp_path: Path) -> None:
    module, callback, _ = run(tmp_path, method, Tied())
    assert callback.stage == "pruned"
    assert module.net[11].weight is module.net[12].weight
    assert module.net[6] is module.net[8]
    assert not ours_left_on(module)
