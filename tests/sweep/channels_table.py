"""The table that the whole-zoo sweep writes, and the share of channels that it asks for."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

import timm
import torch

RATIO = 0.3
NAMED = 100
"""So many architectures that did not run are named at most."""
NAMED_WHY = 8
"""So many reasons why channels are frozen are counted."""


def table(
    rows: dict[str, dict[str, Any]], models: list[dict[str, Any]], note: str = "", *,
    title: str = "Channel surgery on every timm architecture with affine BatchNorm",
    library: str = f"timm {timm.__version__}", counted: str = "BatchNorm channels", how: str = "at random",
    command: str = "python -m tests.sweep.channels",
) -> str:  # fmt: skip
    """The dated Markdown table; `note` says how the rows were collected, the others what they are of."""
    count: dict[str, int] = {}
    run = [model for model in models if model["name"] in rows]
    left = sorted(model["name"] for model in models if model["name"] not in rows)
    lines = []
    for model in run:
        row = rows[model["name"]]
        status = row["status"]
        if status.startswith("ok") and row["frozen"]:
            status += ", partly frozen"
        if row.get("short"):
            status += ", two blocks a stage"
        count[status] = count.get(status, 0) + 1
        detail = row.get("error") or "; ".join([*row.get("reasons", []), *row.get("notes", [])])
        cells = [model["name"], f"{model['parameters'] / 1e6:.1f}", status]
        if "difference" in row:
            share = row["frozen"] / max(row["norm_channels"], 1)
            cells += [
                f"{row['difference']:.0e}",
                f"{row['effect']:.0e}",
                row["dtype"],
                f"{share:.0%}",
                f"{row['removed'] / max(row['norm_channels'], 1):.0%}",
                f"{row['after'] / 1e6:.1f}",
                str(row["restored"]),
                f"{row['stuck']} ({row.get('stuck_dense', 'not run')})" if row.get("stuck") else "0",
                str(row["size"]),
                f"{row['seconds']:.1f}",
            ]
        else:
            cells += ["-"] * 10
        lines.append("| " + " | ".join([*cells, detail.replace("|", "/").replace("\n", " ")[:240]]) + " |")
    why = Counter(reason for model in run for reason in dict.fromkeys(rows[model["name"]].get("reasons", [])))
    times = sorted(r["seconds"] for r in rows.values() if "seconds" in r)
    head = [
        f"# {title}",
        "",
        f"{datetime.date.today()}, {library}, torch {torch.__version__}, CPU, one thread. "
        f"{RATIO:.0%} of the scored {counted} asked for {how}, random weights. Regenerate with "
        f"`{command}` (see its first lines).",
        "",
        "`difference` is the largest |masked - sliced| relative to the largest output, on a random batch, before the "
        f"model was changed; `effect` is what the masking itself changes. `frozen` is the share of {counted} "
        "that may not go, `removed` the share that went, `restored` the groups that came back for equal splits or "
        "non-empty layers, `stuck` the parameters that got no gradient or did not move in one training step after the "
        "surgery (in brackets: in the same step of the dense model, gradients that are only rounding counted as none).",
        "",
        *([note, ""] if note else []),
        f"* run: {len(run)} of {len(models)}",
        *([f"* not run: {', '.join(left)}"] if 0 < len(left) <= NAMED else []),
        *(f"* {status}: {number}" for status, number in sorted(count.items())),
        *(
            f"* among the three reasons why most stay, in {n} networks: {reason}"
            for reason, n in why.most_common(NAMED_WHY)
        ),
        f"* CPU seconds from trace to verified compact model: median {times[len(times) // 2]}, worst {times[-1]}"
        if times
        else "",
        "",
        "| model | M params | status | difference | effect | in | frozen | removed | M params left | restored | stuck "
        "| px | s | detail |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"
