"""Run notebooks and store their outputs: ``python -m tests.notebooks``, or with the names of some.

Each runs from top to bottom in a kernel of its own, in an empty folder. What differs from machine to machine is not
stored: paths, times, kernels, and what other packages warn of in themselves.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Where a warning says that it comes from: another package than this one, with the line of code below it. And fonts.
_FOREIGN = re.compile(r"^(?:\S*site-packages/(?!lightning_prune)\S+:\d+: .*\n(?:  .*\n)*|findfont: .*\n)", re.MULTILINE)
# The folders above a file: all but its own package's.
_FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+@-]+/)+?(?=lightning_prune/\S|[\w.+@-]+(?:[\s:,'\")]|$))")


def sources(notebook: dict[str, Any]) -> list[str]:
    """The code cells, in order."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def fingerprint(notebook: dict[str, Any]) -> str:
    """Of the code, to tell whether stored outputs are those of the code as it stands."""
    return hashlib.sha256("\0".join(sources(notebook)).encode()).hexdigest()[:16]


def scrub(text: str) -> str:
    """Printed text without foreign warnings and folders of this machine."""
    return _FOLDERS.sub("", _FOREIGN.sub("", text))


def store(path: Path) -> None:
    """Run a notebook and write it back with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_plain, cell.outputs) if output is not None]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "outputs_of": fingerprint(notebook),
    }
    nbformat.write(notebook, path)


def _plain(output: Any) -> Any | None:
    if output.output_type == "stream":
        output.text = scrub(output.text)
        return output if output.text.strip() else None
    if "data" in output:
        output.metadata = {}
        output.data["text/plain"] = scrub(output.data.get("text/plain", ""))
    return output


if __name__ == "__main__":
    for given in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
        print(given, flush=True)
        store(given)
