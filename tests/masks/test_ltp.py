"""The fast kernels equal the stated equations, in every layout and precision, and on the whole-tensor path."""

import math

import pytest
import torch

from lightning_prune.masks import ltp as kernels
from lightning_prune.masks.chunks import chunk_size
from tests import ltp_equations as ltp

SHAPES = [(7,), (64, 3, 3, 3), (230, 257, 3, 3)]
assert math.prod(SHAPES[-1]) > chunk_size()  # more than one chunk, the last one shorter


def problem(shape, dtype, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    w = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05).to(dtype)
    g = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.01).to(dtype)
    if len(shape) == 4:
        w, g = w.to(memory_format=memory_format), g.to(memory_format=memory_format)
    temperature, tau = torch.tensor(2e-4, dtype=torch.float64), torch.tensor(2e-3, dtype=torch.float64)
    scalar = dtype if dtype == torch.float64 else torch.float32
    return w, g, tau, temperature, (1 / temperature).to(scalar), (-tau / temperature).to(scalar)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mask_and_step_equal_the_equations(shape, layout, dtype):
    if len(shape) != 4 and layout is torch.channels_last:
        layout = torch.contiguous_format
    w, g, tau, temperature, slope, shift = problem(shape, dtype, layout)
    rtol = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    exact_w, exact_g = w.double().clone(), g.double().clone()
    torch.testing.assert_close(
        kernels.soft_mask(w, slope, shift)[0].double(), ltp.soft_prune(exact_w, tau, temperature), rtol=rtol, atol=1e-9
    )
    stats = kernels.soft_step_(w, g, *kernels.soft_mask(w, slope, shift), slope, shift, count=True).double()
    torch.testing.assert_close(g.double(), ltp.weight_grad(exact_w, exact_g, tau, temperature), rtol=rtol, atol=1e-9)
    s = ltp.band(exact_w, tau, temperature)
    expected = torch.stack([
        (s * exact_g * exact_w).sum(), s.sum(), ltp.soft_l0(exact_w, tau, temperature),
        (exact_w**2 > tau).sum(), ((exact_w**2 - tau).abs() < 4 * temperature).sum(),
    ])  # fmt: skip
    torch.testing.assert_close(stats, expected, rtol=max(rtol, 1e-6) if dtype != torch.float64 else 1e-9, atol=1e-6)
    # and so the threshold's gradient, from the two sums, is the exact one
    lam = 0.7
    ours = -(stats[kernels.TASK] + lam * stats[kernels.BAND])
    assert ours.item() == pytest.approx(
        ltp.threshold_grad(exact_w, exact_g, tau, temperature, lam).item(), rel=max(rtol, 1e-6)
    )


def test_chunked_and_whole_tensor_forms_agree():
    w, g, _, _, slope, shift = problem(SHAPES[-1], torch.float32)
    other = g.clone()
    chunked = kernels.soft_step_(w, g, *kernels.soft_mask(w, slope, shift), slope, shift, count=True)
    whole = kernels._soft_step_whole_(w, other, slope, shift, count=True)
    torch.testing.assert_close(chunked.float(), whole, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(g, other, rtol=2e-5, atol=1e-9)


def test_counts_are_optional():
    w, g, _, _, slope, shift = problem(SHAPES[0], torch.float32)
    stats = kernels.soft_step_(w, g, *kernels.soft_mask(w, slope, shift), slope, shift, count=False)
    assert stats[kernels.HARD_KEPT :].isnan().all()
    assert stats[: kernels.HARD_KEPT].isfinite().all()


def test_zeros_step_masks_gradients_of_zero_weights():
    w = torch.tensor([0.0, 1e-30, -2.0, -0.0])
    g = torch.ones(4)
    kernels.zeros_step_(w, g)
    assert g.tolist() == [0, 1, 1, 0]


def test_noncontiguous_weight_falls_back():
    base = torch.randn(6, 8, dtype=torch.float64)
    w, slope, shift = base.t(), torch.tensor(50.0, dtype=torch.float64), torch.tensor(-5.0, dtype=torch.float64)
    torch.testing.assert_close(kernels.soft_mask(w, slope, shift)[0], ltp.soft_prune(w, 0.1, 0.02))


def test_zero_weights_have_no_gradient_and_no_nan():
    w, g = torch.tensor([0.0, 0.1, -0.0]), torch.ones(3)
    slope, shift = torch.tensor(100.0), torch.tensor(0.0)
    stats = kernels.soft_step_(w, g, *kernels.soft_mask(w, slope, shift), slope, shift, count=True)
    assert g.tolist() == [0, pytest.approx(torch.sigmoid(torch.tensor(1.0)).item()), 0]
    assert stats.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("feedback", [0.3, 1.0])
def test_feedback_gives_pruned_weights_their_share_and_leaves_the_sums(dtype, feedback):
    w, g, tau, temperature, slope, shift = problem(SHAPES[1], dtype)
    w[0], alone = 0, g.clone()
    expected = g.double() * feedback + (1 - feedback) * ltp.weight_grad(w.double(), g.double(), tau, temperature)
    stats = kernels.soft_step_(w, alone, *kernels.soft_mask(w, slope, shift), slope, shift, count=True)
    fed = kernels.soft_step_(w, g, *kernels.soft_mask(w, slope, shift), slope, shift, count=True, feedback=feedback)
    torch.testing.assert_close(fed, stats, rtol=2e-5, atol=1e-6)
    rtol = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(g[1:].double(), expected[1:], rtol=rtol, atol=1e-9)
    # An exact zero keeps its share. It can't say what its gate is (0/0), which is next to 0.
    torch.testing.assert_close(g[0].double(), expected[0], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "dtype", "feedback"),  # chunks and whole tensors; each share is compiled anew, so not all with all
    [
        (torch.contiguous_format, torch.float32, 0.0),
        (torch.channels_last, torch.float32, 1.0),
        (torch.contiguous_format, torch.bfloat16, 0.5),
        (torch.channels_last, torch.bfloat16, 0.0),
    ],
)
def test_compiled_kernels_equal_the_eager_ones(layout, dtype, feedback):
    w, g, _, _, slope, shift = problem((64, 30, 3, 3), dtype, layout)
    eager, compiled, stats = {}, {}, []
    for fuse, into in ((False, eager), (True, compiled)):
        into["gradient"] = g.clone()
        into["masked"], sums = kernels.soft_mask(w, slope, shift, fuse=fuse)
        options = {"count": False, "fuse": fuse, "feedback": feedback}
        step = kernels.soft_step_(w, into["gradient"], into["masked"], sums, slope, shift, **options)
        stats.append(step[: kernels.HARD_KEPT].double())
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(compiled, eager, rtol=rtol, atol=1e-9)
    torch.testing.assert_close(*stats, rtol=2e-5, atol=1e-5)
