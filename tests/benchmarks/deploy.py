"""What a deployed network at half the MACs gains over the dense one, in the same run.

    python -m tests.benchmarks.deploy                        # the five networks; goes on where it was stopped
    python -m tests.benchmarks.deploy --only resnet18 --batches 1 --rounds 5
    python -m tests.benchmarks.deploy --table                # writes the page from the results that are there

Speed depends on shapes, not on what was learned: networks are timm's, freshly initialised, with BatchNorm statistics of
the random images that they are calibrated on. So there is no accuracy here; `deploy` offers int8 only where there is.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_prune import Candidate, deploy, prune_channels
from lightning_prune.export.result import fastest_of
from lightning_prune.export.runtimes import PRECISIONS
from lightning_prune.io.describe import versions
from lightning_prune.support.batchnorm import recalibrate
from tests.toy import network

TOY = "toy"

TARGETS = {  # (the least ratio, to what)
    "resnet18": (4.0, "own"), "resnet50": (4.0, "own"),
    "mobilenetv2_100": (1.7, "fastest"), "efficientnet_b0": (1.7, "fastest"), "mixnet_s": (1.7, "fastest"),
}  # fmt: skip
HERE = Path(__file__).parent


def by_work(network: nn.Module) -> dict[str, Tensor]:
    """Scores by convolution: a channel's rank in its layer by the l1 norm, times (weights of a channel)^0.8.

    A channel of few weights costs about as much memory traffic as one of many, and does less with it: at equal MACs a
    network is faster if such channels go first, which are the wide early ones. What accuracy that costs is not asked.
    """
    scores = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels > 3:
            rank = layer.weight.detach().abs().flatten(1).sum(1).argsort().argsort() + 1
            scores[name] = rank / len(rank) * layer.weight[0].numel() ** 0.8
    return scores


SELECTIONS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    **{scope: partial(lambda scope, _: {"score": "l1", "scope": scope}, scope)
       for scope in ("global", "layer", "isomorphic")},
    "work": lambda network: {"scores": by_work(network), "min_channels": 0.1},
}  # fmt: skip


def measure(name: str, args: argparse.Namespace, batches: list[int]) -> list[dict[str, Any]]:
    """One record a batch size."""
    torch.manual_seed(0)
    dense, colours = (network(), 1) if name == TOY else (timm.create_model(name).eval(), 3)
    images = [torch.randn(8, colours, args.size, args.size) for _ in range(2)]
    recalibrate(dense, images)
    small = copy.deepcopy(dense)
    selection = args.selection or ("work" if TARGETS.get(name, (0, ""))[1] == "fastest" else "isomorphic")
    options = SELECTIONS[selection](small)
    pruned = prune_channels(small, images[0][:2], macs=args.macs, divisor=args.divisor, verify=False, **options)
    recalibrate(small, images)
    records = []
    for batch in batches:
        with TemporaryDirectory() as folder:
            result = deploy(
                small, images[0][:2], Path(folder) / "network.onnx", calibration=images, baseline=dense, batch=batch,
                threads=args.threads, precisions=PRECISIONS, rounds=args.rounds,
            )  # fmt: skip
        records.append({
            "model": name, "batch": batch, "size": args.size, "threads": args.threads, "rounds": args.rounds,
            "divisor": args.divisor, "selection": selection, "macs": round(pruned.macs[1] / pruned.macs[0], 4),
            "candidates": [asdict(c) for c in (*result.dense, *result.candidates)], **circumstances(),
        })  # fmt: skip
        print(f"{name}, batch {batch}\n{result}\n", flush=True)
    return records


def circumstances() -> dict[str, Any]:
    """Where and when: date, revision, versions, processor."""
    import onnxruntime
    import openvino

    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "date": str(datetime.date.today()), "revision": revision.stdout.strip(), "cpu": named,
        "versions": {**versions(), "onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__[:8]},
    }  # fmt: skip


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """How many times as long the dense network takes.

    "<runtime> fp32": dense / pruned, both in fp32. "own": dense fp32 in the runtime of the fastest pruned form / that
    form. "fastest fp32": fastest dense fp32 / fastest pruned form. "fastest": fastest dense form / fastest pruned form,
    whatever their precisions.
    """
    found = [Candidate(**c) for c in record["candidates"]]
    dense, pruned = ([c for c in found if c.network == which] for which in ("dense", "pruned"))
    full = {c.runtime: c.seconds for c in dense if c.precision == "fp32"}
    best, best_dense = fastest_of(pruned), fastest_of(dense)
    assert best is not None
    assert best_dense is not None
    out = {f"{c.runtime} fp32": full[c.runtime] / c.seconds for c in pruned if c.precision == "fp32"}
    out["own"] = full[best.runtime] / best.seconds
    out["fastest fp32"] = min(full.values()) / best.seconds
    out["fastest"] = best_dense.seconds / best.seconds
    return out


def page(records: list[dict[str, Any]]) -> str:
    """The Markdown page."""
    last = records[-1]
    lines = [
        "# Deployed networks at half the MACs\n",
        f"`python -m tests.benchmarks.deploy`: {last['cpu']}, threads {last['threads']}, {last['size']} pixels,",
        f"divisor {last['divisor']}, medians of {last['rounds']} calls in turn; {last['date']}, "
        + ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        + ".\n",
        "Latency in ms of the dense network and of the pruned one, in every form: fp32, bf16 (the same file, computed",
        "in bfloat16), int8, and mixed (int8 in all convolutions but the depthwise and squeeze-excite ones). Weights",
        "are random: this is about speed alone. Channels are selected by the l1 norm, ranked among layers of like",
        "structure (isomorphic), or by work: first go those that do least for each value that they write, which are",
        "the wide early ones of depthwise networks. That weighting was chosen on these very networks, for speed and",
        "without a look at accuracy; `--selection isomorphic` with another `--out` gives the others.\n",
        "Ratios are times of dense / pruned. *own*: dense fp32 to the fastest pruned form, in that runtime.",
        "*fastest fp32*: the fastest dense fp32 to the fastest pruned form. *fastest*: the fastest dense form, of any",
        "precision, to the fastest pruned form.\n",
    ]
    columns = list(dict.fromkeys((c["runtime"], c["precision"]) for r in records for c in r["candidates"]))
    head = ["network", "batch", "MACs", "selection", *(f"{runtime} {precision}" for runtime, precision in columns)]
    lines += _row(head), _row(["---"] * len(head))
    for r in records:
        by = {(c["network"], c["runtime"], c["precision"]): 1e3 * c["seconds"] for c in r["candidates"]}
        cells = [_arrow(by.get(("dense", *c)), by.get(("pruned", *c))) for c in columns]
        lines.append(_row([r["model"], str(r["batch"]), f"{r['macs']:.3f}", r["selection"], *cells]))
    names = list(dict.fromkeys(name for r in records for name in ratios(r)))
    lines += "", _row(["network", "batch", *names, "target", "met"]), _row(["---"] * (len(names) + 4))
    for r in records:
        found = ratios(r)
        least, what = TARGETS.get(r["model"], (1.0, "own"))
        met = "yes" if found[what] >= least else "**no**"
        cells = [f"{found[name]:.2f}" if name in found else "–" for name in names]
        lines.append(_row([r["model"], str(r["batch"]), *cells, f"{what} ≥ {least:g}", met]))
    return "\n".join([*lines, ""])


def _arrow(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{before:.2f} → {after:.2f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def known(file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The last record of each network and batch size."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {(r["model"], r["batch"]): r for r in map(json.loads, lines)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(TARGETS), help="timm names")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--divisor", type=int, default=16)
    parser.add_argument("--selection", choices=list(SELECTIONS), help="a scope of the l1 score, or work")
    parser.add_argument("--out", type=Path, default=HERE / "deploy.jsonl")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, a few calls")
    args = parser.parse_args(argv)
    if args.smoke:
        args.only, args.batches, args.rounds, args.size, args.divisor = [TOY], [1], 2, 8, 1
    logging.getLogger("lightning_prune").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    done = known(args.out)
    for name in () if args.table else args.only:
        missing = [batch for batch in args.batches if (name, batch) not in done]
        for record in measure(name, args, missing) if missing else ():
            with args.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
    records = list(known(args.out).values())
    args.out.with_suffix(".md").write_text(page(records))


if __name__ == "__main__":
    main()
