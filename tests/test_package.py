"""What the package says of itself."""

from __future__ import annotations

import re
from importlib.metadata import metadata, version
from pathlib import Path

import lightning_prune

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_metadata_and_the_changelog() -> None:
    assert lightning_prune.__version__ == version("lightning-prune")
    assert f"\n## {lightning_prune.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {lightning_prune.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_exported_name_is_there() -> None:
    assert [name for name in lightning_prune.__all__ if not hasattr(lightning_prune, name)] == []


def test_the_readme_names_the_extras_that_there_are() -> None:
    named = re.findall(r"`(?:pip install \"lightning-prune)?\[([a-z]+)\]", (ROOT / "README.md").read_text())
    assert set(named) == set(metadata("lightning-prune").get_all("Provides-Extra") or [])
