"""A sweep: one fit a target, a table of accuracy against cost, and what is finished is not trained again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightning_prune.cli.app import main
from lightning_prune.cli.commands import fit
from tests.cli.job import SMALL, rows

OPTIONS = [*SMALL, "--trainer.max_epochs=2", "--prune.warmup=0", "--prune.sparsify=1"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The targets that were trained, in turn; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    run = fit.run

    def counted(args: Sequence[str]) -> None:
        done.extend(a for a in args if a.startswith("--prune.target_"))
        run(args)

    monkeypatch.setattr(fit, "run", counted)
    return done


def test_a_finished_target_is_not_trained_again(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = ["sweep", *OPTIONS, "--prune.target_sparsity=0.5", "--out=s"]
    with pytest.raises(SystemExit, match="2"):
        main(first)  # one value alone
    assert not Path("s").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", *OPTIONS, "--prune.target_sparsity=0.5,1.5", "--out=s"])  # the second fails
    assert trained == ["--prune.target_sparsity=0.5", "--prune.target_sparsity=1.5"]
    capsys.readouterr()
    main(["sweep", *OPTIONS, "--prune.target_sparsity=0.5,0.8", "--out=s"])
    assert trained[2:] == ["--prune.target_sparsity=0.8"]
    table = capsys.readouterr().out.rpartition("target_sparsity  ")[2]
    assert "2.00x" in rows(table)["0.5"]
    assert "5.00x" in rows(table)["0.8"]
    with Path("s/sweep.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["target_sparsity", "dense", "pruned", "compression", "bytes"]
    assert [float(row["compression"]) for row in found] == pytest.approx([2, 5], rel=1e-4)
    assert int(found[0]["bytes"]) > int(found[1]["bytes"])
    assert Path("s/sweep.png").read_bytes()[:4] == b"\x89PNG"
    main(["sweep", *OPTIONS, "--prune.target_sparsity=0.8,0.5", "--out=s"])
    assert len(trained) == 3
    assert "saved s/sweep.csv" in capsys.readouterr().out


def test_runs_of_other_options_want_a_folder_of_their_own(
    trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    target = "--prune.target_macs=0.7,0.5"
    with pytest.raises(SystemExit):
        main(["sweep", "--prune=MRTSCallback", target, "--model.model_name=resent18"])
    with pytest.raises(SystemExit):
        main(["sweep", "--prune=FPGMCallback", target])
    err = capsys.readouterr().err.splitlines()
    assert err[1] == (
        "lightning-prune sweep: error: sweep holds a sweep with other options (--prune=MRTSCallback "
        "--model.model_name=resent18 --prune.target_macs): give them again, or another --out."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prune.target_sparsity=0.5,much"], "--prune.target_sparsity 0.5,much: expected numbers"),
        (["--prune.target_macs=0.5,0.3", "--then.target_sparsity=0.5,0.8"], "there are: --prune.target_macs, --then.t"),
        (["--prune.target_macs=0.5,0.3", "--trainer.devices=2"], "on one device: give --trainer.devices to fit alone"),
        (["--data.image_size=8,16"], "with several values there are: none."),
    ],
)
def test_what_is_no_sweep(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", *options])
    assert message in capsys.readouterr().err
