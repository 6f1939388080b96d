"""Why the weights follow g·m alone: with the full gradient the band empties and pruning stalls (LTP, eq. 14).

A small network on the bundled digits, the paper's raw rule for both: only the weights' gradient differs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune.zoo.data import DigitsDataModule
from tests import ltp_equations as ltp

LAM, STEP, EPOCHS = 1e-4, 3e-3, 30


def prepared() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    data = DigitsDataModule(image_size=None, batch_size=64)
    data.setup("fit")
    x, y = zip(*data.train_dataloader(), strict=True)
    x, y = torch.cat(x).flatten(1), torch.cat(y)
    hidden = [nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()]
    net = nn.Sequential(*hidden, nn.Linear(128, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(10):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net, x, y


def sparsify(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, full: bool) -> list[tuple[float, int]]:
    """By epoch: (kept share, weights near a threshold). ``full``: weights follow the exact gradient, not g·m."""
    torch.manual_seed(1)
    layers = [m for m in net if isinstance(m, nn.Linear)]
    dense = [m.weight for m in layers]
    n = sum(w.numel() for w in dense)
    scale = [w.detach().square().mean() for w in dense]
    taus = [torch.zeros(()) for _ in layers]
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
    params = [dict(m.named_parameters()) for m in net]
    path = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(64):
            temperatures = [1e-2 * w.detach().abs().var(correction=0) for w in dense]
            vs, i, h = [], 0, x[batch]
            for module, own in zip(net, params, strict=True):
                if isinstance(module, nn.Linear):
                    v = ltp.soft_prune(own["weight"].detach(), taus[i], temperatures[i]).requires_grad_()
                    vs.append(v)
                    h, i = F.linear(h, v, own["bias"]), i + 1
                else:
                    h = module(h)
            optimizer.zero_grad()
            F.cross_entropy(h, y[batch]).backward()
            for j, (w, v) in enumerate(zip(dense, vs, strict=True)):
                g, s = v.grad, ltp.band(w.detach(), taus[j], temperatures[j])
                w.grad = ltp.weight_grad(w.detach(), g, taus[j], temperatures[j])
                if full:
                    w.grad += 2 * w.detach() ** 2 * s * g + LAM * 2 * w.detach() * s
                # one scale-free step a layer (σ⁴/(λN)), bounded, the same for both rules
                move = (
                    STEP
                    * scale[j] ** 2
                    / (LAM * w.numel())
                    * ltp.threshold_grad(w.detach(), g, taus[j], temperatures[j], LAM)
                )
                taus[j] = (taus[j] - move.clamp(-0.02 * scale[j], 0.02 * scale[j])).clamp_min(0)
            optimizer.step()
        with torch.no_grad():
            kept = sum(float(ltp.soft_l0(w, t, temp)) for w, t, temp in zip(dense, taus, temperatures, strict=True)) / n
            edge = sum(
                int(((w.square() - t).abs() < 4 * temp).sum())
                for w, t, temp in zip(dense, taus, temperatures, strict=True)
            )
        path.append((kept, edge))
    return path


def test_the_full_gradient_stalls_and_ltp_does_not() -> None:
    net, x, y = prepared()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    ltp_path = sparsify(net, x, y, full=False)
    net.load_state_dict(state)
    full_path = sparsify(net, x, y, full=True)
    print("LTP  ", [(round(k, 3), n) for k, n in ltp_path])
    print("full ", [(round(k, 3), n) for k, n in full_path])
    half = EPOCHS // 2
    ltp_late, full_late = (path[half][0] - path[-1][0] for path in (ltp_path, full_path))
    assert ltp_path[-1][0] < 0.7 * full_path[-1][0]  # LTP prunes further
    assert ltp_late > 3 * max(full_late, 0.0)  # and is still going when the other has stopped
    assert ltp_path[-1][1] > 3 * full_path[-1][1]  # because weights remain near the threshold
