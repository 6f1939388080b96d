"""What the pages show runs: the python blocks below a ``<!-- run -->``, a page's from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

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


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```python" in text])
def test_all_python_of_a_page_is_python(page: str) -> None:
    for block in _SHOWN.findall(PAGES[page]):
        compile(block, page, "exec")
