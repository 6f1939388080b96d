"""What the site shows of other folders: the notebooks with their outputs, and the pages that the benches write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
MEASUREMENTS = "measurements.md"


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs when it has collected the pages."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = markdown(json.loads(path.read_text()))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook))
    pages = {path.stem: path.read_text() for path in sorted((ROOT / "tests" / "benchmarks").glob("*.md"))}
    files.append(File.generated(config, MEASUREMENTS, content=measurements(pages)))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page: what links to a page of a bench in the repository links to it on the site."""
    above = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({above}\.\./tests/benchmarks/(\w+)\.md\)", rf"]({above}{MEASUREMENTS}#\1)", text)


def measurements(pages: dict[str, str]) -> str:
    """The pages of the benches as one, each a section that is found by its file's name."""
    parts = ["# Measurements"]
    for stem, text in pages.items():
        title, rest = re.match(r"(?:# (.*)\n)?((?s:.*))", text).groups()  # type: ignore[union-attr]
        section = re.sub(r"^#", "##", rest.strip(), flags=re.MULTILINE).replace("](../../docs/", "](")
        parts.append(f"## {title or stem.replace('_', ' ').capitalize()} {{ #{stem} }}\n\n{section}")
    return "\n\n".join(parts) + "\n"


def markdown(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: text as it is, code in fences, outputs below it, pictures inside the page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        png = "".join(data["image/png"]).strip()
        return f'<img alt="the figure of the cell above" src="data:image/png;base64,{png}">'
    if "text/html" in data:
        return "".join(data["text/html"])
    text = "".join(output.get("text") or data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```"
