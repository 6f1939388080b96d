"""The named timm backbones on real data: exact target, learned thresholds, zeros that stay, file, resume."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import LTPCallback, TimmClassifier, load_pruned, pruned_state_dict, save_pruned, sparsity_report
from lightning_prune.zoo.data import DigitsDataModule
from tests.toy import ours_left_on, trainer

BACKBONES = {
    "efficientnet_b0": {},
    "mixnet_s": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
}
TARGET = 0.8
BATCHES = 6


class Once(lightning.Callback):
    """In the middle of the sparsify phase: copies of the module are plain, and the mask is in what it computes."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.done = callback, False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.callback.stage == "soft" and not self.done and self.callback.progress > 0.5:
            self.done = True
            was = pl_module.training
            pl_module.eval()
            x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                masked = pl_module.model(x)
                plain = copy.deepcopy(pl_module.model)
                again = pickle.loads(pickle.dumps(pl_module.model))
                assert not ours_left_on(plain)
                torch.testing.assert_close(plain(x), again(x))
                assert not torch.allclose(plain(x), masked, atol=1e-3)
            pl_module.train(was)


def fit(path: Path, name: str, ckpt_path: Any = None) -> Any:
    torch.manual_seed(0)
    kwargs = BACKBONES[name]
    module = TimmClassifier(name, model_kwargs=kwargs | {"drop_rate": 0.0}, lr=1e-3)
    callback = LTPCallback(target_sparsity=TARGET, sparsify=2, recalibrate_batches=2)
    once = Once(callback)
    checkpoints = [] if ckpt_path else [ModelCheckpoint(dirpath=path, filename="{epoch}", save_top_k=-1)]
    run = trainer(
        path, [callback, once, *checkpoints], max_epochs=3, limit_train_batches=BATCHES, limit_val_batches=1,
        enable_checkpointing=bool(checkpoints), num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(module, datamodule=DigitsDataModule(batch_size=32), ckpt_path=ckpt_path)
    assert once.done or ckpt_path
    return module, callback


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_end_to_end(name: str, tmp_path: Path) -> None:
    module, callback = fit(tmp_path, name)
    report = sparsity_report(module)
    assert abs(report.zeros - TARGET * report.prunable) <= 1
    assert not ours_left_on(module)

    u = callback.final_thresholds / callback._scale
    assert (u > 0).all()
    assert u.max() / u.min() > 1.3  # learned: some layers are priced far below others
    assert u.std() / u.mean() > 0.05  # and not one outlier alone
    assert len(set(u.tolist())) > 0.9 * len(u)  # each layer has its own

    # two epochs of optimizer steps ago these were the zeros of the prune: they are still the same ones
    pruned = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    for layer in report.layers:
        assert torch.equal(pruned[layer.name] == 0, module.state_dict()[layer.name] == 0), layer.name

    resumed, _ = fit(tmp_path / "again", name, ckpt_path=tmp_path / "epoch=0.ckpt")
    for (key, a), b in zip(module.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key

    module.eval()
    path = save_pruned(module, tmp_path / "pruned.safetensors")
    loaded = load_pruned(path).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    assert sparsity_report(loaded).zeros == report.zeros
    dense = pruned_state_dict(path)
    assert all(torch.equal(dense[k], v) for k, v in module.model.state_dict().items())


def test_torchs_compiler_sees_the_mask_in_one_graph() -> None:
    import timm

    from lightning_prune.masks import SoftGate, attach, detach, find_targets

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4).eval()
    targets, _ = find_targets(model)
    slope, shift = torch.tensor(500.0), torch.tensor(-1.0)
    attach(model, {t.name: SoftGate(slope, shift) for t in targets})
    x = torch.randn(2, 3, 64, 64)
    explained = torch._dynamo.explain(model)(x)
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    shift.fill_(-2.0)  # moving a threshold recompiles nothing
    torch.testing.assert_close(compiled(x), masked_by_hand(model, x, targets), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
    detach(model)


def masked_by_hand(model: Any, x: torch.Tensor, targets: Any) -> Any:
    from torch.func import functional_call

    from lightning_prune.masks import detach
    from tests.ltp_equations import soft_prune

    plain = copy.deepcopy(model)
    detach(plain)
    weights = {t.name: soft_prune(t.param.detach(), 2.0 / 500, 1 / 500) for t in targets}
    return functional_call(plain, weights, (x,))


def test_thresholds_part_over_a_longer_phase(tmp_path: Path) -> None:
    """The runs above are too short for thresholds that move at one speed to part; here each layer finds its own."""
    torch.manual_seed(0)
    module = TimmClassifier("resnet20_cifar", model_kwargs={"width": 8}, lr=1e-3)
    callback = LTPCallback(target_sparsity=TARGET, recalibrate_batches=2)
    data = DigitsDataModule(image_size=None, batch_size=64)  # of 8 × 8 pixels
    trainer(tmp_path, [callback], max_epochs=6, limit_val_batches=0).fit(module, datamodule=data)
    u = (callback.final_thresholds / callback._scale).tolist()
    assert len({round(x, 2) for x in u}) > 0.8 * len(u), u
    assert max(u) / min(u) > 10, u
