"""What the pages show runs: the python blocks below a ``<!-- run -->``, a page's from top to bottom."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch

import lightning_prune
from lightning_prune.scores import score_names

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
# What the reader brings is set up in a comment; what runs stands below a mark.
_RUNS = re.compile(r"^<!-- setup\n(.*?)^-->$|^<!-- run -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class ShortTrainer(lightning.Trainer):
    """Few epochs, and nothing printed or kept: what a page promises holds sooner, too."""

    def __init__(self, max_epochs: int, **options: Any) -> None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        super().__init__(max_epochs=min(max_epochs, 4), enable_model_summary=False, **(quiet | options))


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "<!-- run -->" in text])
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning, "Trainer", ShortTrainer)
    torch.manual_seed(0)
    blocks = [setup or shown for setup, shown in _RUNS.findall(PAGES[page])]
    assert len(blocks) >= PAGES[page].count("<!-- run -->"), "a mark is not right above a python block"
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_public_name_is_in_the_reference_and_every_score_in_its_table() -> None:
    shown = {
        name for text in PAGES.values() for name in re.findall(r"^::: lightning_prune\.(\w+)$", text, re.MULTILINE)
    }
    others = {"ChannelPruningCallback", "__version__"}  # a former name, and a string
    others |= set(lightning_prune.errors.__dict__)  # a page shows the whole module
    assert set(lightning_prune.__all__) - others - shown == set(), "missing below docs/reference"
    rows = re.findall(r"^\| (`.*?`) \|", PAGES["methods/scores.md"], re.MULTILINE)
    assert set(score_names()) - set(re.findall(r"`(\w+)`", " ".join(rows))) == set(), (
        "missing in docs/methods/scores.md"
    )


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```python" in text])
def test_all_python_of_a_page_is_python(page: str) -> None:
    for block in _SHOWN.findall(PAGES[page]):
        compile(block, page, "exec")


def test_a_notebook_becomes_a_page_with_its_outputs() -> None:
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]},
        {"cell_type": "code", "source": ["print(x)"], "outputs": [{"text": ["a\n", "b\n"]}]},
        {"cell_type": "code", "source": ["plot"], "outputs": [{"data": {"image/png": "AAA=\n", "text/plain": "<F>"}}]},
    ]
    blocks = [
        "# Title\ntext",
        "```python\n1 + 1\n```",
        "```text\n2\n```",
        "```python\nprint(x)\n```",
        "```text\na\nb\n```",
    ]
    blocks += [
        "```python\nplot\n```",
        '<img alt="the figure of the cell above" src="data:image/png;base64,AAA=">',
    ]
    assert hooks["markdown"]({"cells": cells}) == "\n\n".join(blocks) + "\n"


def test_pages_of_the_benches_are_sections_found_by_their_names() -> None:
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    picture = "![a](../../docs/images/a.png)"
    one = hooks["measurements"]({"accuracy": f"# Accuracy here\n\n{picture}\n\n## More\n", "step_cost": "a table\n"})
    sections = [
        "## Accuracy here { #accuracy }\n\n![a](images/a.png)\n\n### More",
        "## Step cost { #step_cost }\n\na table",
    ]
    assert one == "\n\n".join(["# Measurements", *sections]) + "\n"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods/weights.md"))
    moved = hooks["on_page_markdown"]("[a](../../tests/benchmarks/accuracy.md)", page=page)
    assert moved == "[a](../measurements.md#accuracy)"
