r"""Networks with streams under norms and with attention, cut to half of their MACs, through all that may follow.

    python -m tests.benchmarks.streams --out tests/benchmarks/streams.md

Of each network, with random weights: masked against sliced (the surgery's own proof), a training step, a
file written and read, an ONNX file against the network, and the way back. Lines that `results/streams.jsonl` holds are
not made again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import load_pruned, prune_channels, save_pruned
from lightning_prune.channels import ChannelGraph, TargetError
from lightning_prune.export.onnx_file import export_onnx
from lightning_prune.functional.norms.compensated import OPERATORS
from lightning_prune.plan.record import plan_of
from lightning_prune.support.faults import explain
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.pipelines import publish, remembered, stamps

MACS = 0.5


class Case(NamedTuple):
    """A network: its name in timm or in torchvision, the input's size, and arguments."""

    name: str
    size: int
    kwargs: Mapping[str, Any] = MappingProxyType({})
    torchvision: bool = False

    def build(self) -> nn.Module:
        """In eval mode, with random weights, where a classifier or a norm's shift starts at zero too."""
        torch.manual_seed(0)
        if self.torchvision:
            import torchvision

            model = torchvision.models.get_model(self.name, num_classes=10, **self.kwargs)
        else:
            model = timm.create_model(self.name, num_classes=10, **self.kwargs)
        for p in model.parameters():
            if p.ndim < 2 or not bool(p.any()):
                p.data += 0.1 * torch.randn_like(p)
        return model.eval()


CASES = (
    Case("vit_tiny_patch16_224", 64, {"img_size": 64}),
    Case("vit_small_patch16_224", 64, {"img_size": 64}),
    Case("deit_tiny_patch16_224", 64, {"img_size": 64}),
    Case("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 4}),
    Case("convnext_atto", 64),
    Case("convnext_tiny", 64),
    Case("mobilevit_xs", 64),
    Case("maxvit_rmlp_pico_rw_256", 128, {"img_size": 128}),
    Case("efficientformer_l1", 224),
    Case("convnextv2_atto", 64),
    Case("mixer_s16_224", 224),
    Case("swin_t", 64, torchvision=True),
    Case("vit_b_16", 64, {"image_size": 64}, torchvision=True),
)


def _trained(model: nn.Module, batch: Tensor, rounding: float = 0.0) -> set[str]:
    """The parameters that a training step gives a gradient above rounding; raises if one is not finite after it.

    rounding: what passes for it, relative to the largest gradient. A bias before a softmax has no gradient but that.
    """
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    model(batch).square().mean().backward()
    optimizer.step()
    if broken := [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]:
        raise ValueError(f"not finite after a step: {broken[0]}")
    sizes = {name: float(p.grad.abs().max()) for name, p in model.named_parameters() if p.grad is not None}
    return {name for name, size in sizes.items() if size > rounding * max(sizes.values())}


def _within(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max())


@torch.no_grad()
def _loaded(model: nn.Module, case: Case, batch: Tensor, folder: Path) -> float:
    save_pruned(model, folder / "net.prune")
    model = copy.deepcopy(model)
    fresh = load_pruned(folder / "net.prune", model=case.build() if case.torchvision else None)
    return _within(model(batch), fresh.eval()(batch))


def held_back(graph: ChannelGraph) -> list[str]:
    """Why rows of weights stay, the outputs aside, the most first: "share of all rows: reason"."""
    count: Counter[str] = Counter()
    total = 0
    for name, dims in graph.axes.items():
        if 0 in dims and len(graph.shapes[name]) > 1:
            total += len(dims[0])
            for identity in dims[0][dims[0] < 0].tolist():
                reasons = graph.frozen_reasons[-1 - identity]
                count[reasons[0].partition(": ")[2] or reasons[0]] += 1
    return [f"{number / total:.0%}: {reason}" for reason, number in count.most_common(2) if number >= 0.02 * total]


def run(case: Case) -> dict[str, Any]:
    """All that is asked of one network."""
    dense, batch = case.build(), torch.randn(2, 3, case.size, case.size)
    found: dict[str, Any] = {"held": held_back(ChannelGraph.trace(dense, batch, norms="exact"))}
    model, start = copy.deepcopy(dense), time.process_time()
    try:
        result = prune_channels(model, batch, score="l1", macs=MACS, norms="exact")
    except TargetError as error:
        return {**found, "error": explain(error)}
    found |= {
        "seconds": round(time.process_time() - start, 1), "form": result.plan.form, "notes": list(result.notes),
        "macs": result.macs[1] / result.macs[0], "params": result.params[1] / result.params[0],
        "difference": result.proof.difference if result.proof else None,
        "norms": sum("norm" in path for path in result.plan.denominators), "told": len(result.plan.denominators),
    }  # fmt: skip

    def tried(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # goes into the table
            return explain(error)

    with tempfile.TemporaryDirectory() as folder:
        found["trains"] = tried(lambda: _trained(dense, batch, 1e-6) <= _trained(model, batch))
        found["loaded"] = tried(lambda: _loaded(model, case, batch, Path(folder)))
        found["onnx"] = tried(lambda: export_onnx(model, batch, Path(folder) / "net.onnx") or True)
    with torch.no_grad():
        before = model(batch)
        found["undone"] = tried(lambda: _within(before, plan_of(model).undo(model)(batch)))  # type: ignore[union-attr]
    return found


def speeds() -> dict[str, float]:
    """CPU time of a norm that lost half of its channels, in that of PyTorch's own LayerNorm of as many: the ratios."""
    x, seed = torch.randn(8, 197, 192), torch.randn(8, 197, 192)
    weight, bias = (nn.Parameter(torch.randn(192)) for _ in range(2))
    norms: dict[str, Callable[[Tensor], Tensor]] = {
        "own": lambda x: F.layer_norm(x, (192,), weight, bias),
        "ours": lambda x: OPERATORS["layer_norm"](x, [192], weight, bias, 1e-5, 384),
    }
    best: dict[tuple[str, bool], float] = {}
    for _, (name, norm), trains in itertools.product(range(9), norms.items(), (False, True)):
        start, given = time.process_time(), x.clone().requires_grad_(trains)
        for _ in range(10):
            out = norm(given)
            if trains:
                out.backward(seed)  # type: ignore[no-untyped-call]
        best[name, trains] = min(best.get((name, trains), math.inf), time.process_time() - start)
    return {name: best["ours", trains] / best["own", trains] for name, trains in (("runs", False), ("steps", True))}


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.0e}" if isinstance(value, float) else str(value)[:120]


def page(lines: list[dict[str, Any]], speed: dict[str, Any] | None) -> str:
    """Markdown."""
    rows = []
    for line in lines:
        name, held = line["run"]["name"], "; ".join(line["held"]) or "-"
        if "error" in line:
            rows.append(f"| {name} | not met: {line['error'][:200]} |" + " |" * 8 + f" {held} |")
            continue
        cells = [_cell(line[k]) for k in ("difference", "trains", "loaded", "onnx", "undone")]
        own = f"{line['macs']:.3f} | {line['params']:.3f} | {line['form']} | {line['told']}"
        rows.append(f"| {name} | {own} | {' | '.join(cells)} | {line['seconds']} | {held} |")
    return "\n".join([
        f"# Streams and heads cut to {MACS:g} of the MACs",
        "",
        "Random weights, L1 score, `norms='exact'`. Divide on: norms and attentions that go on to divide by the number "
        "of channels that there were. Differences are the largest, relative to the largest output; in float32, "
        "but in float64 of masked against sliced where the proof needs that. "
        "Trains: whatever a training step gives a gradient in the dense network gets one in the compact one. "
        "Held: the share of rows of weights that may not go, the "
        "classifier's aside, and why.",
        "",
        "| network | MACs left | parameters left | form | divide on | masked - sliced | trains | saved - loaded "
        "| ONNX equal | pruned - undone | CPU s | held |",
        "|" + "---|" * 12,
        *rows,
        "",
        *([f"A LayerNorm that lost half of its channels takes {speed['runs']:.1f} times the CPU time of PyTorch's own, "
           f"forward and backward {speed['steps']:.1f} times, on [8, 197, 192], eagerly, in one thread."]
          if speed else []),
        "",
        *stamps(lines),
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--results", type=Path, default=RESULTS / "streams.jsonl")
    parser.add_argument("--known", action="store_true", help="write the page from the lines that are there; run none")
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    lines = []
    for case in (case for case in CASES if case.name in args.networks):
        work = None if args.known else lambda c=case: run(c)
        line = remembered(args.results, {"name": case.name, "size": case.size, "macs": MACS}, work)
        lines += [line] if line else []
    speed = remembered(args.results, {"name": "speed"}, None if args.known else speeds)
    publish(page(lines, speed), args.out)


if __name__ == "__main__":
    main()
