"""Help: a page for each command, about a page long, whose options there are."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest

from lightning_prune.cli.app import COMMANDS, main
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
    """The options that a page speaks of, each with a value; those that stand for any are left out."""
    found = re.findall(r"--[a-z][\w.]*", page)
    return [f"{name}=1" for name in found if not name.endswith((".", ".help", "--help.all", "--help"))]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_options_on_the_page_of_a_training_command_exist(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[str] = []

    def parse(self: PruneCLI, parser: Any, args: Any) -> None:
        assert isinstance(self.options, Parser)
        known.extend(self.options.names())
        raise SystemExit

    monkeypatch.setattr(PruneCLI, "parse_arguments", parse)
    with pytest.raises(SystemExit):
        import_module(f"lightning_prune.cli.commands.{command}").run([])
    options = options_on(page(capsys, command))
    assert len(options) > 5
    bases = {
        "prune": (BASES["prune"][0], "null"),
        "then": (BASES["then"][0], "null"),
        "data": (BASES["data"][0], "null"),
    }
    classes = re.compile(r"--(prune|then|data)=")
    check_names([o for o in options if not classes.match(o) and o != "--recipe=1" and o != "--config=1"], known, bases)


@pytest.mark.parametrize("command", ["report", "compare", "pick", "deploy"])
def test_the_options_of_a_command_are_those_on_its_page(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers: list[Parser] = []
    monkeypatch.setattr(
        Parser, "parse_args", lambda self, args: parsers.append(self) or (_ for _ in ()).throw(SystemExit)
    )
    with pytest.raises(SystemExit):
        main([command, "a", "b"] if command == "compare" else [command, "a"])
    told = {name.partition("=")[0] for name in options_on(page(capsys, command)) if "data." not in name}
    assert told == {
        name for name in parsers[0].names() if name not in ("--help", "--print_config", "--config", "--data.help")
    }


def test_help_all_shows_the_options_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help.all"])
    assert not caught.value.code
    assert "--trainer.gradient_clip_val" in capsys.readouterr().out
