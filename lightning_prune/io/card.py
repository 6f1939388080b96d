"""The model card of a folder: what was removed, how large the rest is, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_prune.io.save import Content

CARD = "README.md"


def model_card(content: Content, size: int, metrics: Mapping[str, float | str]) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
        content: what is saved.
        size: bytes of the weights and the plan.
        metrics: {what: value}, measured by whoever saves.
    """
    told: Mapping[str, Any] = content.sparsity
    compact = bool(content.plans)
    kind, library = ("compact", "lightning-prune") if compact else ("sparse", "timm")
    rows: dict[str, float | str] = {
        "parameters": f"{sum(content.state[key].numel() for key in _parameters(content)):,}",
        "conv and linear weights": f"{told['prunable']:,}",
        "of these zero": f"{told['zeros']:,} ({told['sparsity']:.2%})",
    }
    if compact:
        before = told["prunable"] + told.get("removed", 0)
        rows["conv and linear weights before channels were removed"] = f"{before:,}"
    rows |= {"weights' file" if not compact else "weights' file and plan": f"{size:,} bytes", **metrics}
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())
    plain = (
        "Plain timm refuses it, as its tensors have the shapes that the pruning plan leaves."
        if compact
        else 'Plain timm reads it too: `timm.create_model("hf-hub:owner/name", pretrained=True)`.'
    )
    written = ", ".join(f"{key} {value}" for key, value in content.description()["versions"].items())
    return f"""---
library_name: {library}
tags:
- timm
- pruning
- lightning-prune
---

# {content.name}, {kind}

`{content.name}` of timm, pruned with `lightning_prune`.

```python
from lightning_prune import load_pruned

model = load_pruned("hf-hub:owner/name")  # or the folder's path
```

{plain}

| | |
|---|---|
{table}

Written with {written}.
"""


def _parameters(content: Content) -> list[str]:
    own = {key for key, _ in content.network.named_parameters(remove_duplicate=False)}
    return [key for key in content.state if key in own]


def _cell(value: object) -> str:
    text = f"{value:,.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
