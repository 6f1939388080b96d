"""A language model of characters on the command line: trained, pruned, and its file looked at."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from lightning_prune import load_pruned
from lightning_prune.cli.app import main
from tests.cli.job import fit


def test_a_language_model_is_fitted_by_name_and_its_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("a text of some words. " * 300)
    fit(
        tmp_path, "--model.model_name=character_transformer", "--model.model_kwargs={width: 64, length: 16}",
        "--data=CharactersDataModule", f"--data.root={tmp_path / 'text'}", "--data.length=16",
        "--prune=FLOPCallback", "--prune.target_params=0.5",
    )  # fmt: skip
    out = capsys.readouterr().out
    folder = tmp_path / "lightning_logs" / "version_0"
    known = json.loads((folder / "results.json").read_text())
    assert re.search(r"bits per character +{:.3f} +{:.3f}\n".format(*known["val/bits"]), out)
    assert known["input"] == [16]
    assert load_pruned(folder / "pruned.safetensors")(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 256, 16)
    main(["report", str(folder), "--threads=1"])
    assert re.search(r"MACs +", capsys.readouterr().out)
    main(["compare", str(folder / "pruned.safetensors"), str(folder), f"--data.root={tmp_path / 'text'}"])
    assert re.search(r"accuracy +(\d+\.\d\d%) +\1 +\+0\.00%", capsys.readouterr().out)
    main(["test", str(folder / "pruned.safetensors"), "--trainer.limit_test_batches=1"])
    assert "test/bits" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["predict", str(folder / "pruned.safetensors"), "--out", str(tmp_path / "out.csv")])
    assert "`lightning-prune test` gives a language model's bits per character" in capsys.readouterr().err
