"""The notebooks run from top to bottom, in a folder of their own."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], f"cell {number} holds an output: clear it before the commit"
            source = "".join(cell["source"]).replace("EPOCHS = 5", "EPOCHS = 2")  # what it shows holds sooner, too
            exec(compile(source, f"{path.name}[{number}]", "exec"), names)
