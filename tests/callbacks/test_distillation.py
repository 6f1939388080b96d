"""Distillation in a fit: the loss, with any method of ours and none, and what is left of it after."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F

from lightning_prune import DistillationCallback, LTPCallback, MRTSCallback, distill, plan_of
from tests.callbacks.methods import equal, keep_all
from tests.toy import Toy, loaders, network, ours_left_on, trainer, zeros

PHASES: dict[str, Any] = {"warmup": 1, "sparsify": 1, "recalibrate_batches": 2}
METHODS: dict[str, Any] = {
    "none": list,
    "ltp": lambda: [LTPCallback(target_sparsity=0.8, **PHASES)],
    "mrts": lambda: [MRTSCallback(target_macs=0.5, **PHASES)],
}


def teacher() -> nn.Sequential:
    """Sharp enough to say something."""
    made = network(seed=1)
    with torch.no_grad():
        made[8].weight *= 20
    return made


def fit(
    path: Path, method: str = "none", module: Toy | None = None, callbacks: Any = (), ckpt_path: Any = None,
    **options: Any,
) -> tuple[Toy, DistillationCallback, lightning.Trainer]:  # fmt: skip
    """Four epochs of the toy module with a method, taught; the default teacher is `teacher`."""
    torch.manual_seed(0)
    module = Toy() if module is None else module
    distillation = DistillationCallback(**({"teacher": teacher()} | options))
    run = trainer(path, [distillation, *METHODS[method](), *callbacks], max_epochs=4, enable_checkpointing=True)
    run.fit(module, **loaders(), ckpt_path=ckpt_path)
    return module, distillation, run


class Manual(Toy):
    """Optimizes by hand."""

    asks = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        if self.asks:
            loss = distill(self, loss)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Dict(Toy):
    """Returns its loss among other things, and takes no batch index."""

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return {"loss": super().training_step(batch, 0), "more": 1}


class Asks(Toy):
    """Asks for the loss, though it need not."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return distill(self, super().training_step(batch, batch_idx))


def by_hand() -> nn.Module:
    """Four epochs, written out, in double precision: last digits grow a thousandfold."""
    net, theirs = network().double(), teacher().double().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    data = loaders()["train_dataloaders"]
    for epoch in range(4):
        data.sampler.set_epoch(epoch)
        for x, y in data:
            out = net(x.double())
            log_p, q = F.log_softmax(out / 4, 1), F.softmax(theirs(x.double()).detach() / 4, 1)
            loss = 0.3 * F.cross_entropy(out, y) + 0.7 * 16 * F.kl_div(log_p, q, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def test_the_loss_is_hintons_in_every_kind_of_step(tmp_path: Path) -> None:
    expected = torch.cat([p.detach().flatten() for p in by_hand().parameters()])
    plain = Toy().double()
    trainer(tmp_path, [], max_epochs=4, precision="64-true").fit(plain, **loaders())
    assert not torch.allclose(torch.cat([p.flatten() for p in plain.parameters()]), expected, atol=1e-2)
    for kind in (Toy, Dict, Asks, Manual):
        module, taught = kind(), DistillationCallback(teacher=teacher().double(), alpha=0.7, features=None)
        run = trainer(tmp_path, [taught], max_epochs=4, precision="64-true")
        run.fit(module, **loaders())
        got = torch.cat([p.detach().flatten() for p in module.parameters()])
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4, msg=kind.__name__)
        assert run.callback_metrics["distill/loss"] > 0


def test_manual_optimization_that_does_not_ask_is_refused(tmp_path: Path) -> None:
    class Silent(Manual):
        asks = False

    with pytest.raises(ValueError, match=r"lightning_prune.distill\(self, loss\)"):
        fit(tmp_path, module=Silent())

    class Alternates(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx % 2 == 0:  # other steps train something else
                super().training_step(batch, batch_idx)

    fit(tmp_path, module=Alternates())
    module = Manual()  # without the callback, the helper gives the loss back
    trainer(tmp_path, [], max_epochs=1).fit(module, **loaders())


@pytest.mark.parametrize(("method", "source"), [("none", "given"), ("none", "copy"), ("ltp", "copy"), ("mrts", "copy")])
def test_resumed_equals_uninterrupted(method: str, source: str, tmp_path: Path) -> None:
    def run(where: str, **more: Any) -> Toy:
        options: dict[str, Any] = {"features": ["2"]} | ({} if source == "given" else {"teacher": None})
        return fit(tmp_path / where, method, **options, **more)[0]

    whole = run("whole", callbacks=[keep_all(tmp_path / "kept", 5)])
    for step in (5, 10, 20):  # warm-up, the sparsify phase, finetune
        path = tmp_path / "kept" / f"step={step}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        assert list(checkpoint["state_dict"]) == list(Toy().state_dict())
        assert len(checkpoint["optimizer_states"][0]["param_groups"][0]["params"]) == len([*Toy().parameters()])
        assert path.stat().st_size < 60_000
        assert equal(run(f"again {step}", ckpt_path=path), whole)
    assert len([*tmp_path.rglob("teacher-*.safetensors")]) == (source == "copy")


def test_the_copy_is_the_network_as_the_fit_began(tmp_path: Path) -> None:
    started = network()
    module, callback, run = fit(tmp_path, "mrts", teacher=None)
    assert equal(callback.teacher, started)  # type: ignore[arg-type]
    run.fit_loop.max_epochs = 5
    run.fit(module, **loaders())  # goes on: so does the teacher
    assert equal(callback.teacher, started)  # type: ignore[arg-type]


class Owner(Toy):
    """Keeps its teacher as a child, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = teacher()
        self.teacher[4].running_mean.normal_()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_is_never_pruned_trained_or_moved(method: str, tmp_path: Path) -> None:
    module = Owner()
    before = copy.deepcopy(module.teacher)
    _, callback, _ = fit(tmp_path, method, module, teacher=module.teacher, features={"2": "2"})
    assert callback.teacher is module.teacher
    assert equal(module.teacher, before)
    assert all(p.grad is None for p in module.teacher.parameters())
    assert (plan_of(module.net) is not None) == (method == "mrts")
    assert (zeros(module.net) > 900) == (method == "ltp")


@pytest.mark.parametrize("matching", ["attention", "similarity"])
def test_features_are_matched_after_channels_are_gone(matching: str, tmp_path: Path) -> None:
    seen: list[tuple[bool, float]] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append((plan_of(pl_module) is not None, float(trainer.callback_metrics["distill/features"])))

    options = {"teacher": None, "features": ["2", "5"], "matching": matching}
    fit(tmp_path, "mrts", callbacks=[Watch()], **options)
    assert seen[0] == (False, pytest.approx(0, abs=3e-2))  # a copy, but in eval mode
    after = [value for compact, value in seen if compact]
    assert len(set(after)) == len(after) == 16  # measured anew in each step
    assert min(after) > 0


def test_a_rewritten_graph_has_no_layers_to_match(tmp_path: Path) -> None:
    callback = DistillationCallback(teacher(), features=["2"])
    mrts = MRTSCallback(target_macs=0.5, surgery={"form": "graph"}, **PHASES)
    run = trainer(tmp_path, [callback, mrts], max_epochs=3)
    with pytest.warns(UserWarning, match="runs as a rewritten graph from here on, in which 2 are not called"):
        run.fit(Toy(), **loaders())
    assert "distill/loss" in run.callback_metrics


def check_plain(module: Toy) -> None:
    assert type(module) is Toy
    assert not ours_left_on(module)
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_nothing_is_left_on_the_module_and_copies_are_plain(tmp_path: Path) -> None:
    copies: list[Any] = []

    class Copy(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if not copies:
                assert type(pl_module) is not Toy
                copies.extend([copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))])

    module, _, _ = fit(tmp_path, callbacks=[Copy(), EMAWeightAveraging(decay=0.8)], features=["2"])
    for each in (module, *copies):
        check_plain(each)

    class Broken(lightning.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise ZeroDivisionError("on purpose")

    module = Toy()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        fit(tmp_path, module=module, callbacks=[Broken()])
    check_plain(module)


def test_two_teachers_and_a_step_on_the_instance(tmp_path: Path) -> None:
    """A step that is an attribute of the instance (a compiled module has one) is wrapped as well."""
    module, calls = Toy(), []
    original = module.training_step

    def counted(batch: Any, batch_idx: int) -> Any:
        calls.append(1)
        return original(batch, batch_idx)

    module.training_step = counted  # type: ignore[method-assign]

    class Second(DistillationCallback):
        """Has a state of its own."""

    both = [DistillationCallback(teacher(), alpha=0.0, features=["2"]), Second(teacher(), alpha=0.5)]
    run = trainer(tmp_path, both, max_epochs=1)
    run.fit(module, **loaders())
    assert len(calls) == 8
    assert {"distill/loss", "distill/features"} <= run.callback_metrics.keys()
    assert vars(module)["training_step"] is counted
