"""The gate without a jump: fast kernels and the whole-tensor form against autograd on the equation that they state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_prune.callbacks.families.zeros import _smallest
from lightning_prune.functional.order.kth import Shards
from lightning_prune.functional.shrink import FORMS, fading, holding, soft_threshold
from lightning_prune.masks import FadingGate, HeldGate, Target
from lightning_prune.masks import fading as kernels
from lightning_prune.masks.chunks import chunk_size
from lightning_prune.masks.ltp import BAND, HARD_KEPT, IN_BAND, KEPT, TASK

SHAPES = [(7,), (64, 3, 3, 3), (230, 257, 3, 3)]
assert math.prod(SHAPES[-1]) > chunk_size()  # more than one chunk, the last one shorter
TAU = 2e-3


def problem(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05).to(dtype)
    g = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.01).to(dtype)
    if len(shape) == 4:
        w, g = w.to(memory_format=layout), g.to(memory_format=layout)
    return w, g, torch.tensor(TAU, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def by_autograd(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """−d(Σ g·v)/dτ and −d(Σ m)/dτ."""
    w, g, tau = w.double(), g.double(), torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    v = fading(w, tau)
    kept = torch.where(w == 0, torch.zeros_like(w), v / torch.where(w == 0, 1.0, w))
    task, band = (torch.autograd.grad(each, tau, retain_graph=True)[0] for each in ((g * v).sum(), kept.sum()))
    return -task, -band


def test_the_equation_by_hand() -> None:
    """Nothing at the threshold, half of 16τ, three quarters of 256τ; all without one; between soft and nothing."""
    tau = torch.tensor(0.01)
    w = torch.tensor([0.0, 0.05, 0.1, -0.4, 1.6])
    torch.testing.assert_close(fading(w, tau), torch.tensor([0.0, 0.0, 0.0, -0.2, 1.2]))
    assert torch.equal(fading(w, torch.tensor(0.0)), w)
    larger = torch.linspace(0.11, 3, 50)
    assert bool((fading(larger, tau) < soft_threshold(larger, tau.sqrt())).all())
    assert FORMS["soft"](larger, tau).equal(soft_threshold(larger, tau.sqrt()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gate_and_step_equal_autograd(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    w, g, tau = problem(shape, dtype, layout)
    w[(0,) * w.ndim] = 0  # a weight that is 0 has no gradient and makes no NaN
    rtol = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    gate = FadingGate(tau)
    v = gate(w)
    torch.testing.assert_close(v.double(), fading(w.double(), tau.double()), rtol=rtol, atol=1e-8)
    kept = w.double().square() > TAU
    expected, (task, band) = torch.where(kept, g, torch.zeros_like(g)), by_autograd(w, g)
    assert torch.equal(v != 0, kept) or dtype == torch.bfloat16
    stats = gate.step_(w, g, count=True).double()
    torch.testing.assert_close(stats[TASK], task, rtol=max(rtol, 1e-9), atol=2e-4 if dtype != torch.float64 else 1e-9)
    torch.testing.assert_close(stats[BAND], band, rtol=rtol, atol=1e-9)
    assert stats[[KEPT, HARD_KEPT, IN_BAND]].tolist() == [int(torch.count_nonzero(v))] * 3
    if dtype != torch.bfloat16:
        torch.testing.assert_close(g, expected)


def test_chunked_and_whole_tensor_forms_agree() -> None:
    w, g, tau = problem(SHAPES[-1], torch.float32, torch.contiguous_format)
    other, (v, gone) = g.clone(), kernels.faded(w, tau)
    assert gone is not None
    chunked = kernels.faded_step_(w, g, v, gone, tau)
    whole = kernels.faded_step_(w, other, v, None, tau)
    torch.testing.assert_close(chunked.float(), whole, rtol=2e-5, atol=1e-5)
    assert torch.equal(g, other)


@pytest.mark.parametrize("feedback", [0.3, 1.0])
def test_feedback_gives_pruned_weights_their_share_and_leaves_the_sums(feedback: float) -> None:
    w, g, tau = problem(SHAPES[1], torch.float32, torch.contiguous_format)
    alone, before = g.clone(), g.clone()
    gate, fed = FadingGate(tau), FadingGate(tau, feedback)
    torch.testing.assert_close(
        fed.step_(w, g, count=True).double(), gate.step_(w, alone, count=True), rtol=2e-5, atol=1e-6
    )
    torch.testing.assert_close(g, torch.where(w.square() > tau, before, feedback * before))


@pytest.mark.parametrize("feedback", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_equal_the_eager_ones(dtype: torch.dtype, feedback: float) -> None:
    w, g, tau = problem((64, 30, 3, 3), dtype, torch.channels_last)
    compiled = g.clone()
    eager_stats = FadingGate(tau, feedback).step_(w, g, count=False)
    stats = FadingGate(tau, feedback, fuse=True).step_(w, compiled, count=False)
    torch.testing.assert_close(stats.double(), eager_stats.double(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(compiled, g, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-9)


@pytest.mark.parametrize("tau", [0.0, 1e-4, 1.4e-2])  # of the last 2 % are kept: the few must not drown in the many
def test_compiled_sums_are_those_of_the_equations_at_any_threshold(tau: float) -> None:
    w, g, _ = problem(SHAPES[-1], torch.float32, torch.contiguous_format)
    x, expected, threshold = w.double(), g.double(), torch.tensor(tau)
    kept = x.square() > tau
    rest = torch.where(kept, (tau / x.square()) ** 0.25, 0.0)
    v, gone = kernels.faded(w, threshold, fuse=True)
    stats = kernels.faded_step_(w, g, v, gone, threshold, fuse=True)
    rate = 0.25 / tau if tau else 0.0
    torch.testing.assert_close(v.double(), torch.where(kept, x * (1 - rest), 0.0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(stats[TASK], rate * (expected * x * rest).sum(), rtol=1e-4, atol=1e-4 * rate)
    torch.testing.assert_close(stats[BAND], rate * rest.sum(), rtol=1e-5, atol=1e-9)
    assert stats[KEPT] == int(kept.sum())
    assert torch.equal(g.double(), torch.where(kept, expected, 0.0))


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in chunks, and the whole tensor
def test_an_overflow_shows_in_the_sum_though_the_weight_is_pruned(fuse: bool, dtype: torch.dtype) -> None:
    """A loss scaler then skips the step, and thresholds have to wait as well."""
    w, g, tau = problem(SHAPES[1], dtype, torch.contiguous_format)
    g[tuple((w.double().square() <= TAU).nonzero()[0])] = torch.inf
    assert not torch.isfinite(FadingGate(tau, fuse=fuse).step_(w, g, count=False)[TASK])


@pytest.mark.parametrize("cut", [0.02, 0.05, 0.1])  # the budget keeps more than the gate, nearly the same, less
def test_what_is_kept_is_folded_and_never_zero(cut: float) -> None:
    w, _, tau = problem(SHAPES[1], torch.float32, torch.contiguous_format)
    gate, kept = FadingGate(tau), w.abs() > cut
    folded = gate.fold(w, w[kept].abs().min())
    assert gate.folds
    assert bool((folded[kept] != 0).all())
    assert torch.equal(folded[kept].sign(), w[kept].sign())
    if cut > TAU**0.5:
        torch.testing.assert_close(folded[kept], gate(w)[kept])


@pytest.mark.parametrize("feedback", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fuse", [False, True])
def test_a_held_layer_keeps_its_norm_and_passes_gradients_on(fuse: bool, dtype: torch.dtype, feedback: float) -> None:
    w, g, tau = problem(SHAPES[1], dtype, torch.channels_last)
    k = holding(w.double().square().sum(), fading(w.double(), tau.double()).square().sum())
    assert k > 1.3
    x, before, tau64 = w.double(), g.double().clone(), tau.double().clone().requires_grad_()
    rtol = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    gate = HeldGate(tau, k.to(tau.dtype), feedback, fuse)
    v = gate(w)
    torch.testing.assert_close(v.double().norm(), x.norm(), rtol=rtol, atol=0)
    held = k * fading(x, tau64)
    torch.testing.assert_close(v.double(), held.detach(), rtol=rtol, atol=1e-7)
    (slope,) = torch.autograd.grad((before * held).sum(), tau64)  # k is a constant
    stats = gate.step_(w, g, count=True).double()
    torch.testing.assert_close(stats[TASK], -slope, rtol=rtol, atol=1e-3)
    passed = torch.where(v != 0, 1.0, feedback)
    torch.testing.assert_close(g.double(), before * passed, rtol=rtol, atol=1e-8)
    assert stats[KEPT] == torch.count_nonzero(v)
    kept = w.double().abs() > 0.08
    torch.testing.assert_close(gate.fold(w, w[kept].abs().min())[kept], v[kept])


def test_what_holds_a_norm_is_finite_for_layers_of_zeros_and_those_that_have_faded() -> None:
    squares, faded = torch.tensor([4.0, 4.0, 0.0, 4.0]), torch.tensor([1.0, 4.0, 0.0, 0.0])
    assert holding(squares, faded).tolist() == [2.0, 1.0, 1.0, 1000.0]


def test_the_smallest_kept_weight_is_looked_for_in_all_shards() -> None:
    """Of two layers another process keeps 0.2 and nothing; this one 0.5 and 0.3, its zero does not count."""
    other = torch.tensor([0.2, torch.inf])
    shards = Shards(0, 2, lambda rows: rows + torch.stack([torch.zeros(2), other]))
    weights = [torch.tensor([[0.5, 0.1], [0.7, 0.0]]), torch.tensor([[-0.3, 0.9]])]
    masks = [torch.tensor([[True, False], [True, True]]), torch.tensor([[True, True]])]
    targets = [Target(f"{i}.weight", torch.nn.Parameter(w), torch.nn.Identity()) for i, w in enumerate(weights)]
    torch.testing.assert_close(_smallest(list(zip(targets, masks, strict=True)), shards), torch.tensor([0.2, 0.3]))
