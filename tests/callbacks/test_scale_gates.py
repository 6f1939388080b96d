"""Scale factors of groups without BatchNorm: gates that the penalty moves, and that go into the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_prune import MRTSCallback, NetworkSlimmingCallback, TimmClassifier
from lightning_prune.callbacks.methods.channels import scales
from lightning_prune.functional.mrts import GaussianChannel, proximal_step
from tests.callbacks import test_behaviours as promises
from tests.callbacks import test_behaviours_checkpoints as checkpoints
from tests.callbacks import test_behaviours_left_behind as left_behind
from tests.callbacks.methods import equal, fit, macs
from tests.callbacks.test_mrts import Still
from tests.toy import Toy, loaders, network, trainer

NAME = "mrts gates"
SHORT: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 0}


def bare() -> nn.Sequential:
    """The toy network without BatchNorm."""
    net = network()
    net[1] = net[4] = nn.Identity()
    return net


def with_net(net: nn.Module) -> Toy:
    module = Toy()
    module.net = net  # type: ignore[assignment]
    return module


def test_budget(tmp_path: Path) -> None:
    promises.test_the_budget_is_met_and_stays_met_through_finetune(NAME, tmp_path)


def test_resume(tmp_path: Path) -> None:
    checkpoints.check_resume(tmp_path, NAME, "adamw", (24, 33))


def test_checkpoints(tmp_path: Path) -> None:
    checkpoints.test_checkpoints_are_plain_in_every_phase(NAME, tmp_path / "plain")
    checkpoints.test_evaluation_of_a_soft_checkpoint_sees_what_training_saw(NAME, tmp_path / "soft")


def test_nothing_is_left(tmp_path: Path) -> None:
    left_behind.test_nothing_is_left_on_the_module(NAME, tmp_path)
    left_behind.test_an_exception_leaves_a_plain_module_and_a_second_fit_works(NAME, tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_on_gates_is_one_proximal_step_at_their_own_rate(optimizer: str, tmp_path: Path) -> None:
    """The loss moves nothing: gates that the penalty alone moves, from values of their own."""
    module, end = Still(optimizer), []
    module.net = bare()
    before = copy.deepcopy(module.net)

    class Set(MRTSCallback):
        def start(self, units: Any) -> None:
            super().start(units)
            for gate in self.factors.gates:
                gate.data.copy_(torch.linspace(0.2, 1.0, len(gate)))

    class Note(lightning.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            end[:] = [gate.detach().clone() for gate in callback.factors.gates]

    callback = Set(mode="paper", lam=0.5, gate_lr=0.01, warmup=0, sparsify=1.0, delta=1e-6)
    with pytest.warns(UserWarning, match="removes no channel"):
        trainer(tmp_path, [callback, Note()], max_epochs=2, limit_val_batches=0).fit(module, **loaders())
    assert [len(gate) for gate in end] == [8, 16]
    for got in end:
        gate = torch.linspace(0.2, 1.0, len(got))
        for _ in range(16):
            gate = proximal_step(gate, 0.5 * 0.01, 1.5, GaussianChannel(0.25), 1.0)
        torch.testing.assert_close(got, gate, rtol=1e-5, atol=1e-6)
    # Nothing went, and the gates are in the weights of the layers behind: 3 and 8, whose decay is the optimizer's.
    scale = module.net[8].weight.detach() / before[8].weight.detach()
    torch.testing.assert_close(scale / scale[:, :1], (end[1] / end[1][0]).expand_as(scale), rtol=1e-3, atol=1e-3)


def test_a_fit_that_ends_early_leaves_what_was_trained(tmp_path: Path) -> None:
    x, seen = torch.randn(4, 1, 8, 8), []

    class Last(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen[:] = [pl_module(x).detach(), copy.deepcopy(pl_module.net)(x).detach()]
            trainer.should_stop = trainer.current_epoch == 1

    options = {"warmup": 0, "sparsify": 6, "delta": 1e-9, "recalibrate_batches": 0}
    with pytest.warns(UserWarning, match="removes no channel"):
        module, callback, _ = fit(tmp_path, MRTSCallback, with_net(bare()), [Last()], options=options)
    gated, plain = seen
    assert callback.stage == "pruned"
    torch.testing.assert_close(module(x), gated, rtol=1e-4, atol=1e-5)
    assert (gated - plain).abs().max() > 0.01


def test_batchnorm_everywhere_is_as_without_gates(tmp_path: Path) -> None:
    found = []
    for kind in ("auto", "batchnorm"):
        options = {"target_macs": 0.5, "scales": kind, "sparsify": 1}
        module, callback, _ = fit(tmp_path, MRTSCallback, options=options, **SHORT)
        assert not callback.factors.gates
        found.append(module)
    assert equal(*found)


class Mixed(nn.Sequential):
    """BatchNorm on the first convolution, none on the second, and a hidden linear layer."""

    def __init__(self) -> None:
        net = network()
        super().__init__(
            net[0], net[1], net[2], net[3], nn.GELU(), *net[6:8], nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 4)
        )


@pytest.mark.parametrize("method", [MRTSCallback, NetworkSlimmingCallback])
def test_a_mixed_network_has_both(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(scales, "rank_zero_info", told.append)
    module = with_net(Mixed())
    options = {"target_macs": 0.5, "sparsify": 1}
    _, callback, _ = fit(tmp_path, method, module, options=options, **SHORT)
    assert told == [
        f"{method.__name__} decides by gates on 28 channel groups (3, 7), and by BatchNorm scale factors on 8."
    ]
    assert callback.units.layers == (("1",), ("3",), ("7",))
    assert macs(module.net) <= 0.5 * macs(Mixed())
    assert all(float(p.detach().std()) > 0 for p in callback.factors.params)  # both kinds have moved


def test_heads_and_widths_of_a_transformer(tmp_path: Path) -> None:
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4}
    module = TimmClassifier("vit_tiny_patch16_224", num_classes=4, model_kwargs=size, lr=1e-3)
    dense = macs(copy.deepcopy(module.model))
    options = {"warmup": 0, "sparsify": 1, "recalibrate_batches": 0, "surgery": {"attention": "heads"}}
    callback = MRTSCallback(target_macs=0.6, **options)
    trainer(tmp_path, [callback], max_epochs=2, limit_val_batches=0).fit(module, **loaders())
    assert 0.55 * dense <= macs(module.model) <= 0.6 * dense
    assert {name for names in callback.units.layers for name in names} == {
        f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "mlp.fc1")
    }


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"scales='gate' must be one of \('auto', 'batchnorm', 'gates'\)"):
        MRTSCallback(scales="gate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gate_lr=0 must be positive"):
        NetworkSlimmingCallback(gate_lr=0)
    with pytest.raises(ValueError, match=r"information='labels' looks at what enters a BatchNorm"):
        MRTSCallback(scales="gates", information="labels")
