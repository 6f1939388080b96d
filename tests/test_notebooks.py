"""The notebooks run from top to bottom, and hold the outputs of the code that they show.

Four of them train for a few batches an epoch here; ``python -m tests.notebooks``, which stores their outputs, and
``-m sweep`` train them whole.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebooks import NOTEBOOKS, ROOT, fingerprint, scrub, sources

LOADED = {path.stem: json.loads(path.read_text()) for path in NOTEBOOKS}


# What Lightning takes for the Trainer's defaults, and the notebooks that keep their assertions with them.
SHORT = {f"PL_TRAINER_LIMIT_{part}_BATCHES": "3" for part in ("TRAIN", "VAL", "TEST")}
SHORTENED = ("1_ltp", "2_mrts", "3_deploy", "5_your_network")


@pytest.mark.parametrize("name", LOADED)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, SHORT if name in SHORTENED else {})


@pytest.mark.sweep
@pytest.mark.parametrize("name", SHORTENED)
def test_notebook_runs_whole(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, {})


def check(name: str, tmp_path: Path, defaults: dict[str, str]) -> None:
    """In a process of its own, as a kernel is: what one leaves behind is not there for the next."""
    cells = [f"# code cell {number}\n{source}" for number, source in enumerate(sources(LOADED[name]))]
    script = tmp_path / f"{name}.py"
    script.write_text("\n\n".join(cells))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = defaults | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(script)]
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.parametrize("name", LOADED)
def test_outputs_are_those_of_the_code(name: str) -> None:
    notebook = LOADED[name]
    again = f"run python -m tests.notebooks notebooks/{name}.ipynb"
    assert notebook["metadata"]["outputs_of"] == fingerprint(notebook), f"the code has changed: {again}"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), again
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})], "no picture"
    assert not re.findall(
        r"(?:^|[\s'\"(=])/\w+/[\w./-]*", json.dumps([o.get("text") for o in outputs]).replace("\\n", "\n")
    )


def test_what_is_stored_says_nothing_of_the_machine() -> None:
    said = (
        "/opt/venv/lib/site-packages/lightning/x.py:21: deprecated\n  warn()\n"
        "/opt/venv/lib/site-packages/lightning_prune/logs.py:39: about to empty\n"
        "findfont: Font family ['X'] not found.\n12 of 13 layers, 3 img/s\n"
    )
    assert scrub(said) == "lightning_prune/logs.py:39: about to empty\n12 of 13 layers, 3 img/s\n"
