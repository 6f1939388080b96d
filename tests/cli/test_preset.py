"""Which values a method has when the command line does not say: the preset is LTP's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_prune.cli.app import main


def prune_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What ``fit --print_config`` says of the pruning callback."""
    with pytest.raises(SystemExit) as caught:
        main(["fit", *arguments, "--print_config"])
    assert not caught.value.code
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["prune"]
    return config["init_args"] | {"class": config["class_path"].split(".")[-1]}


@pytest.mark.parametrize("arguments", [[], ["--prune=LTPCallback"], ["--prune.lam=2"]])
def test_ltp_has_the_preset(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    found = prune_of(capsys, *arguments)
    assert (found["class"], found["warmup"], found["sparsify"], found["min_keep"]) == ("LTPCallback", 0.4, 0.4, 0.01)


def test_the_preset_gives_way(capsys: pytest.CaptureFixture[str]) -> None:
    found = prune_of(capsys, "--prune.warmup=2", "--prune.target_compression=4")
    assert (found["warmup"], found["sparsify"], found["target_compression"]) == (2, 0.4, 4)
    assert found["target_sparsity"] is None


OWN = {
    "MRTSCallback": {"warmup": 0.1, "sparsify": 0.5, "min_keep": 0.05},
    "NetworkSlimmingCallback": {"warmup": 0.1, "sparsify": 0.5, "min_keep": 0.05},
    "MagnitudeCallback": {"warmup": 0, "sparsify": 0.6, "min_keep": 0.01},
}


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("others", [[], ["--data=ImageFolderDataModule", "--prune.warmup=3"]])
def test_other_methods_have_their_own_defaults(
    capsys: pytest.CaptureFixture[str], method: str, others: list[str]
) -> None:
    found = prune_of(capsys, f"--prune={method}", *others)
    assert found["class"] == method
    expected = OWN[method] | ({"warmup": 3} if others else {})
    assert {name: found[name] for name in expected} == expected


def test_a_method_from_a_file_has_its_own_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = {"prune": {"class_path": "lightning_prune.MRTSCallback", "init_args": {"target_macs": 0.7}}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    found = prune_of(capsys, f"--config={tmp_path / 'job.yaml'}", "--prune.divisor=8")
    assert (found["target_macs"], found["warmup"], found["min_keep"], found["divisor"]) == (0.7, 0.1, 0.05, 8)


def test_what_is_printed_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--prune=MRTSCallback", "--print_config"])
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert prune_of(capsys, f"--config={tmp_path / 'job.yaml'}") == prune_of(capsys, "--prune=MRTSCallback")


def test_a_score_is_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = prune_of(capsys, "--prune=ScorePruningCallback", "--prune.score=taylor_activation", "--prune.scope=layer")
    expected = {"score": "taylor_activation", "scope": "layer", "warmup": 0.5, "sparsify": 0, "score_batches": 20}
    assert {name: found[name] for name in expected} == expected
    assert prune_of(capsys, "--prune=FPGMCallback")["score"] is None
