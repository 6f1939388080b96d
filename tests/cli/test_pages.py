"""Help: a page for each command, about a page long, whose options there are."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lightning_prune.cli.app import COMMANDS, main
from lightning_prune.cli.models import Opened
from lightning_prune.cli.parser import Parser, check_names
from lightning_prune.cli.training import BASES, PruneCLI


def page(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    main([*args, "--help"])
    out, err = capsys.readouterr()
    assert not err
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = page(capsys, command)
    lines = out.splitlines()
    assert lines[0].startswith(f"usage: lightning-prune {command}")
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 132
    assert "prune" in out
    assert "{" not in out  # every name is put in
    assert re.search(rf"^  lightning-prune {command}\b", out, re.MULTILINE)  # an example


def test_the_page_of_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(re.search(rf"^  {name} +\w", page(capsys), re.MULTILINE) for name in COMMANDS)
    main([])
    assert capsys.readouterr().out == page(capsys)
    main(["--version"])
    assert re.fullmatch(r"lightning-prune \S+\n", capsys.readouterr().out)


def options_on(page: str) -> list[str]:
    """The options that a page speaks of; those that stand for any are left out."""
    found = re.findall(r"--[a-z][\w.]*", page)
    return [name for name in found if not name.endswith((".", "help", "help.all", "OPTION"))]


class Stop(Exception):
    """The parser is known."""


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_options_on_the_page_of_a_training_command_exist(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[str] = []

    def parse(self: PruneCLI, parser: Any, args: Any) -> None:
        assert isinstance(self.options, Parser)
        known.extend(self.options.names())
        raise Stop

    monkeypatch.setattr(PruneCLI, "parse_arguments", parse)
    with pytest.raises(Stop):
        import_module(f"lightning_prune.cli.commands.{command}").run([])
    options = [name for name in options_on(page(capsys, command)) if name not in ("--config", "--recipe")]
    assert len(options) > 5
    check_names(options, known, {key: (base, "null") for key, (base, _) in BASES.items()})


@pytest.mark.parametrize("command", ["report", "compare", "pick", "deploy", "rethink"])
def test_the_options_of_a_command_are_those_on_its_page(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers: list[Parser] = []

    def parse(self: Parser, args: Any) -> None:
        parsers.append(self)
        raise Stop

    monkeypatch.setattr(Parser, "parse_args", parse)
    module = import_module(f"lightning_prune.cli.commands.{command}")
    if command in ("deploy", "rethink"):  # they read the model first
        monkeypatch.setattr(module, "open_model", lambda path: Opened(nn.Identity(), Path(path), "", None))
    with pytest.raises(Stop):
        module.run(["a", "b"])
    told = {name for name in options_on(page(capsys, command)) if "." not in name}
    assert told == set(parsers[0].names()) - {"--help", "--data.help"}


def test_help_all_shows_the_options_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help.all"])
    assert not caught.value.code
    assert "--trainer.gradient_clip_val" in capsys.readouterr().out
