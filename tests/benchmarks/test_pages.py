"""Pages of the bench: the command that a file's first lines give writes the page that is kept, from the runs kept."""

from __future__ import annotations

import ast
import importlib
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = (
    "accuracy", "behaviours", "distillation", "flop", "from_scratch", "learning_rates", "own_threshold", "price",
    "rethinking", "scale", "scale_gates", "scores", "search", "short_training", "soak", "sparse_macs",
    "stream_accuracy", "streams", "transformers", "unlike_scales",
)  # fmt: skip
_COMMAND = re.compile(r"python -m tests\.benchmarks\.(?:[^\n\\]|\\\n)*")
_ELSEWHERE = "accuracy.md"  # goes with a table of the README: test_accuracy


def commands() -> Iterator[object]:
    """Of each page its module and the arguments of its command."""
    for name in FILES:
        told = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text()))
        for command in _COMMAND.findall(told or ""):
            _, _, module, *arguments = shlex.split(command.replace("\\\n", " "))
            page = Path(arguments[arguments.index("--out") + 1])
            if page.name != _ELSEWHERE:
                yield pytest.param(module, arguments, id=page.stem)


@pytest.mark.parametrize(("module", "arguments"), list(commands()))
def test_a_page_is_what_its_command_writes(
    module: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("lightning_prune", "lightning.pytorch"):  # commands silence them; the fixture gives them back
        caplog.set_level(logging.getLogger(name).level, name)
    if "--image" in arguments:
        pytest.importorskip("matplotlib")
        arguments[arguments.index("--image") + 1] = str(tmp_path / "image.png")
    at = arguments.index("--out") + 1
    kept, arguments[at] = HERE / Path(arguments[at]).name, str(tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--known"])
    importlib.import_module(module).main()
    assert (tmp_path / "page.md").read_text() == kept.read_text()
