"""timm models: the fast subset on every run, exports and compilation of each under the `sweep` marker."""

from __future__ import annotations

import copy
import functools
import io
import time
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelGraph, PruningPlan, prune_channels
from tests.channels.models import random_scores, silenced
from tests.sweep.networks import randomise, train_step

FAST = ("resnet18", "mobilenetv3_small_100", "efficientnet_b0", "mixnet_s", "ghostnet_100", "skresnet18",
        "res2net50_26w_4s", "regnetx_002", "cspresnet50", "levit_128s")  # fmt: skip
TINY = ("test_resnet", "test_efficientnet", "test_byobnet", "test_coatnet", "test_maxvit")
SHARED = ("resnet18", "mixnet_s", "regnetx_002")
SIZE = {"levit_128s": 224, "test_coatnet": 160, "test_maxvit": 160}
FROZEN = {"test_maxvit": 0.12}
"""Largest share of frozen BatchNorm channels; 0 for every other model here."""


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights, scale factors and statistics, and a batch."""
    torch.manual_seed(0)
    size = SIZE.get(name, 96)
    batch = torch.randn(2, 3, size, size)
    model = timm.create_model(name)
    randomise(model, batch)
    return model, batch


def quiet_eval(model: nn.Module) -> nn.Module:
    """Eval mode without calling `train`, which some timm modules break."""
    for module in model.modules():
        module.training = False
    return model


def prune(name: str, **options: Any) -> tuple[nn.Module, nn.Module, Any, Tensor]:
    """(dense, compact, result, batch)"""
    dense, batch = make(name)
    small = copy.deepcopy(dense)
    return dense, small, prune_channels(small, batch, scores=random_scores(small), **options), batch


_kept = functools.cache(prune)


def pruned(name: str) -> tuple[nn.Module, nn.Module, Any, Tensor]:
    """As `prune`, at a ratio of 0.3; of networks that several tests look at, copies of what was pruned once."""
    if name not in SHARED:
        return prune(name, ratio=0.3)
    dense, small, result, batch = _kept(name, ratio=0.3)
    return copy.deepcopy(dense), copy.deepcopy(small), result, batch


@pytest.mark.parametrize("name", FAST + TINY)
def test_masked_equals_sliced_and_training_goes_on(name: str) -> None:
    start = time.process_time()
    dense, small, result, batch = pruned(name)
    assert time.process_time() - start < 60
    assert result.plan.form == "eager"
    total, frozen = result.graph.norm_channels()
    assert frozen <= FROZEN.get(name, 0) * total, result.graph
    assert sum(p.numel() for p in small.parameters()) < 0.98 * sum(p.numel() for p in dense.parameters())
    reference = silenced(copy.deepcopy(dense), result.plan).double()
    with torch.no_grad():
        expected, found, before = reference(batch.double()), copy.deepcopy(small).double()(batch.double()), dense(batch)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    assert (before - expected).abs().max() > 1e-3 * before.abs().max()
    fresh = PruningPlan.from_json(result.plan.to_json()).apply(timm.create_model(name))
    quiet_eval(fresh).load_state_dict(small.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh(batch), small(batch), rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(small)(batch), small(batch), rtol=0, atol=0)
    assert train_step(small, batch) == 0


@pytest.mark.parametrize("name", ["resnet18", "mixnet_s", "regnetx_002"])
def test_pruned_twice(name: str) -> None:
    dense, small, first, batch = pruned(name)
    middle = copy.deepcopy(small)
    second = prune_channels(small, batch, scores=random_scores(small, 5), ratio=0.3)
    both = first.plan.then(second.plan).apply(copy.deepcopy(dense))
    torch.testing.assert_close(both(batch), small(batch), rtol=0, atol=0)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in middle.parameters())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_alignment(name: str) -> None:
    dense, small, _, _ = prune(name, ratio=0.5, divisor=8)
    widths = dict(dense.named_parameters())
    cut = {n: (widths[n].shape[0], p.shape[0]) for n, p in small.named_parameters() if p.shape != widths[n].shape}
    assert len(cut) > 20
    assert all(after % 8 == 0 or after == before for before, after in cut.values())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "regnetx_002", "efficientnet_b0"])
def test_dead_channels_go_without_a_trace(name: str) -> None:
    model, batch = make(name)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            off = torch.rand(module.num_features, generator=generator) < 0.6
            module.weight.data[off] = 0
            module.bias.data[off] = 0
    with torch.no_grad():
        before, parameters = model(batch), sum(p.numel() for p in model.parameters())
        prune_channels(model, batch)
        torch.testing.assert_close(model(batch), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    assert sum(p.numel() for p in model.parameters()) < parameters


def test_attention_models_keep_no_stale_cache() -> None:
    model, batch = make("levit_128s")
    with torch.no_grad():
        model(batch)
    prune_channels(model, batch, scores=random_scores(model), ratio=0.3)
    caches = [v for m in model.modules() for k, v in vars(m).items() if k == "attention_bias_cache"]
    assert caches
    assert not any(caches)


def test_eca_only_freezes_the_streams_that_it_touches() -> None:
    model, batch = make("ecaresnet26t")
    graph = ChannelGraph.trace(model, batch)
    for name in graph.norms:
        ids = graph.axes[f"{name}.weight"][0]
        reasons = {r for i in ids[ids < 0].tolist() for r in graph.frozen_reasons[-1 - i]}
        assert not reasons or any(".se" in r for r in reasons), (name, reasons)
        if name.endswith(("bn1", "bn2")):
            assert bool((ids >= 0).all())


def check_compile(name: str, backend: str) -> None:
    """`torch.compile` of the compact model gives the same output."""
    _, small, _, batch = pruned(name)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(small, backend=backend)(batch)
        expected = small(batch)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def check_onnx(name: str) -> None:
    """The ONNX file of the compact model gives the same output in onnxruntime."""
    _, small, _, batch = pruned(name)
    file = io.BytesIO()
    torch.onnx.export(small, (batch,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])
    with torch.no_grad():
        expected = small(batch)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mixnet_s"])
def test_compile(name: str) -> None:
    check_compile(name, "aot_eager")


@pytest.mark.parametrize("name", ["resnet18", "mixnet_s"])
def test_onnx(name: str) -> None:
    check_onnx(name)


@pytest.mark.sweep
@pytest.mark.parametrize("name", FAST)
def test_compile_all(name: str) -> None:
    check_compile(name, "inductor")


@pytest.mark.sweep
@pytest.mark.parametrize("name", FAST)
def test_onnx_all(name: str) -> None:
    check_onnx(name)
