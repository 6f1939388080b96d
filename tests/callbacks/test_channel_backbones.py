"""The named timm backbones on real data: they shrink in mid-fit, train on, resume, save, load and export."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning
import onnxruntime
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from lightning_prune import MRTSCallback, NetworkSlimmingCallback, TimmClassifier, load_pruned, save_pruned
from lightning_prune.channels.select.taps import scale_readers_
from lightning_prune.zoo.data import DigitsDataModule
from tests.toy import trainer

BACKBONES = {
    "efficientnet_b0": MRTSCallback,
    "mixnet_s": MRTSCallback,
    "resnet18": MRTSCallback,
    "resnet50": MRTSCallback,
    "vgg16_bn_cifar": MRTSCallback,
    "mobilenetv2_100": NetworkSlimmingCallback,
    "densenet121": MRTSCallback,
}
# From which epochs on a run is resumed: just before the removal, and after it, too.
RESUMED = {"efficientnet_b0": (1, 2), "mixnet_s": (1,), "resnet18": (1,)}
BATCHES = 3


class Losses(lightning.Callback):
    """The training loss on one fixed batch just before and after the removal, and with the channels only masked."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.numbers, self.before = callback, {}, {}

    def loss(self, module: Any) -> Any:
        x, y = self.batch
        was = module.training
        module.eval()
        with torch.no_grad():
            value = F.cross_entropy(module(x), y).item()
        module.train(was)
        return value

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.callback.stage == "soft":
            self.batch = batch
            self.before = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.callback.stage != "pruned" or self.numbers or not self.before:
            return
        self.numbers["pruned"] = self.loss(pl_module)
        masked = TimmClassifier(**pl_module.hparams)
        masked.load_state_dict(self.before)
        cuts = self.callback.pruned.plan.cuts
        for name, m in masked.model.named_modules():
            if isinstance(m, nn.BatchNorm2d) and f"{name}.weight" in cuts:
                gone = torch.ones(m.num_features, dtype=torch.bool)
                gone[list(cuts[f"{name}.weight"].kept[0])] = False
                m.weight.data[gone] = 0
        folds = self.callback.folds()  # of channels that no BatchNorm scales, such as those inside of squeeze-excite
        if folds is not None:
            gated = torch.cat(self.callback.units.scales.gated())
            folds[gated] *= self.callback.pruned.keep[gated]
            assert scale_readers_(masked.model, self.callback.units.taps, folds) == []
        self.numbers["masked"] = self.loss(masked)


def fit(path: Path, name: str, ckpt_path: Any = None) -> Any:
    torch.manual_seed(0)
    kwargs = {"width": 16} if "cifar" in name else {}
    module = TimmClassifier(name, model_kwargs=kwargs | {"drop_rate": 0.0}, lr=1e-3)
    callback = BACKBONES[name](target_macs=0.5, warmup=1, sparsify=1, recalibrate_batches=0)
    losses = Losses(callback)
    keeps = name in RESUMED and not ckpt_path
    checkpoints = [ModelCheckpoint(path, "{epoch}", save_top_k=-1)] if keeps else []
    run = trainer(
        path, [callback, losses, *checkpoints], max_epochs=4, limit_train_batches=BATCHES, limit_val_batches=1,
        enable_checkpointing=bool(checkpoints), num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(module, datamodule=DigitsDataModule(batch_size=32), ckpt_path=ckpt_path)
    return module, callback, losses


def exported(network: nn.Module, x: torch.Tensor, dynamo: bool) -> bytes:
    """The network as ONNX, by either of PyTorch's exporters; that without dynamo takes a tenth of the time.

    `tests/channels/test_zoo.py` has other compact networks by dynamo.
    """
    file = io.BytesIO()
    if dynamo:
        torch.onnx.export(network, (x,), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(network, (x,), file, dynamo=False)
    return file.getvalue()


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_shrinks_in_mid_fit_trains_on_resumes_saves_loads_and_exports(name: str, tmp_path: Path) -> None:
    module, callback, losses = fit(tmp_path, name)
    dense = TimmClassifier(**module.hparams)
    size, before = (sum(p.numel() for p in m.parameters()) for m in (module, dense))
    assert 0.495 <= callback.numbers["macs"] <= 0.5
    assert size < 0.8 * before
    assert callback.pruned.proof.equal
    assert losses.numbers["pruned"] == pytest.approx(losses.numbers["masked"], rel=0.1, abs=0.05)
    for p in module.parameters():
        assert p.grad is None or p.grad.shape == p.shape

    for epoch in RESUMED.get(name, ()):
        again, resumed, _ = fit(tmp_path / f"from{epoch}", name, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert resumed.numbers["macs"] == callback.numbers["macs"]
        for (key, a), b in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), f"{key} after resuming at the end of epoch {epoch}"

    x = torch.randn(2, 1, 32, 32)
    loaded = load_pruned(save_pruned(module, tmp_path / "compact.safetensors")).eval()
    with torch.no_grad():
        expected = module.eval().model(x)
        assert torch.equal(loaded(x), expected)
    session = onnxruntime.InferenceSession(
        exported(loaded, x, dynamo=name == "efficientnet_b0"), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-4)
