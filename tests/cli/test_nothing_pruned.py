"""Runs that end before the removal: no file, another exit code than 0, and how to go on."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_prune.cli.app import main
from tests.cli.job import fit, rows


@pytest.fixture(autouse=True)
def _signal_handler() -> Iterator[None]:
    """Lightning ignores Ctrl-C for good once it has met one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(path: Path, at: int, *arguments: str) -> str:
    stop = ["--trainer.callbacks+=tests.cli.job.Interrupt", f"--trainer.callbacks.at={at}"]
    with pytest.raises(SystemExit) as caught:
        fit(path, *arguments, *stop)
    assert not list(path.rglob("*.safetensors"))
    message = caught.value.code
    assert isinstance(message, str)  # printed to stderr, with exit code 1
    return message


@pytest.mark.parametrize(
    ("method", "at", "place"), [("MRTSCallback", 6, "in the sparsify phase"), ("LTPCallback", 10, "in finetune")]
)
def test_ctrl_c_says_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, at: int, place: str
) -> None:
    message = interrupted(tmp_path, at, f"--prune={method}")
    assert f"Interrupted {place}" in message
    command = re.search(r"^  lightning-prune (.*)$", message, re.MULTILINE)
    assert command is not None
    main([*shlex.split(command[1]), "--trainer.callbacks=null"])
    out = capsys.readouterr().out
    assert len(re.findall(r"\d+\.\d\d%", rows(out)["val/acc"])) == 2
    assert len(list(tmp_path.rglob("pruned.safetensors"))) == 1


def test_ctrl_c_before_the_first_checkpoint(tmp_path: Path) -> None:
    message = interrupted(tmp_path, 2)
    assert "Interrupted before the sparsify phase" in message
    assert "No checkpoint was saved yet" in message


def test_a_run_resumed_past_its_end_says_that_nothing_was_pruned(tmp_path: Path) -> None:
    message = interrupted(tmp_path, 8, "--prune.sparsify=2")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert str(checkpoint) in message
    with pytest.raises(SystemExit, match=r"Nothing was pruned.*in the sparsify phase.*max_epochs") as caught:
        fit(tmp_path / "b", "--prune.sparsify=2", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2")
    assert isinstance(caught.value.code, str)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_method_that_keeps_everything_says_that_nothing_was_pruned(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="every weight is left"):
        fit(tmp_path, "--prune.target_sparsity=0")
    assert not list(tmp_path.rglob("*.safetensors"))
