"""Mistakes of the user: each message that the documentation quotes is the whole output, with exit code 2."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lightning_prune.cli.app import COMMANDS, main
from lightning_prune.cli.commands.fit import FitCLI
from lightning_prune.cli.mistakes import UserError, one_line, told

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
QUOTED: dict[str, str] = dict(re.findall(r"```console\n\$ lightning-prune ([^\n]*)\n(.*?)```", PAGE, re.DOTALL))
QUICK = [
    "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"
]  # fmt: skip


@pytest.mark.parametrize("command", QUOTED)
def test_a_mistake_is_told_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lightning_logs" / "version_0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*shlex.split(command), *(QUICK if "convnext" in command else [])])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert err == QUOTED[command]
    assert not out.strip()
    assert err.count("\n") == 1


def test_all_kinds_of_mistakes_are_quoted() -> None:
    wanted = (
        "max_epoch ", "target_sparsty", "resent18", "LTPCalback", "DigitDataModule", "data.root", "ckpt_path", "config",
        "recipe", "1.5", "much", "convnext",
    )  # fmt: skip
    assert all(any(word in command for command in QUOTED) for word in wanted)


def test_every_command_has_an_example_in_the_documentation() -> None:
    examples = re.findall(r"^lightning-prune (\w+)", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)), re.M)
    assert set(examples) == set(COMMANDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "prune: {class_path: LTPCallback, init_args: {target_sparsty: 1}}",
            "no option --prune.target_sparsty. Did you",
        ),
        ("trainer: {max_epoch: 3}", "no option --trainer.max_epoch. Did you mean --trainer.max_epochs"),
        ("trainr: {max_epochs: 3}", "no option --trainr. Did you mean --trainer"),
        ("data: {class_path: DigitDataModule}", "no --data DigitDataModule. Did you mean DigitsDataModule?"),
        ("model: {lr: fast}", "--model.lr: expected a float, got 'fast'."),
        ("a: b: c", "Problems parsing config: mapping values are not allowed"),
    ],
)
def test_mistakes_in_a_file(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path / 'job.yaml'}"])
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"PK nothing")
    for command in ("fit --ckpt_path", "validate", "report"):
        with pytest.raises(SystemExit):
            main([*command.split(), str(tmp_path / "a.ckpt")])
        assert f"{tmp_path / 'a.ckpt'} is no checkpoint, or a damaged one (" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [KeyError("lost"), ValueError("of some library"), AssertionError("never")])
def test_a_fault_of_ours_keeps_its_traceback(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise fault

    monkeypatch.setattr(FitCLI, "before_fit", fails)
    with pytest.raises(type(fault), match=str(fault.args[0])):
        main(["fit", "--model.model_name=test_resnet"])


def test_options_inside_of_an_option_are_left_to_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    inside = ["--optimizer=Adam", "--optimizer.lr=0.1", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x"]
    callback = ["--trainer.callbacks+=tests.cli.job.Interrupt", "--trainer.callbacks.at=3"]
    with pytest.raises(SystemExit) as caught:
        main(["fit", *inside, *callback, "--print_config"])
    assert not caught.value.code
    assert "at: 3" in capsys.readouterr().out


def caught(function: object, *args: object) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011  any, to ask whose fault it is
        function(*args)  # type: ignore[operator]
    return info.value


def test_whose_fault_an_error_is() -> None:
    from lightning_prune import LTPCallback
    from lightning_prune.cli.models import parse_shape
    from lightning_prune.cli.parser import options_of_class

    assert told(UserError("a\n  b")) == "a b"
    assert "lies in [0, 1)" in str(told(caught(lambda: LTPCallback(min_keep=2)))).replace(
        "is a share of each layer, in", "lies in"
    )
    assert told(caught(parse_shape, "3x")) is not None
    assert told(caught(options_of_class, None)) is None  # an AttributeError of our own making
    assert told(caught(int, "x")) is None


def test_what_jsonargparse_may_say_otherwise() -> None:
    assert one_line('Parser key "a":\n  something else\n  entirely') == "--a: something else entirely"
