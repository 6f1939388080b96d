"""Whose fault an error is: the user's is told in one line, ours keeps its traceback."""

from __future__ import annotations

import dis
import re
from collections.abc import Collection
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import trainer

from lightning_prune.support.near import did_you_mean

_PACKAGE = Path(__file__).parents[1]
_TRAINER = Path(trainer.__file__).parent  # what it cannot make of its arguments
_PLAIN = {"NoneType": "null", "str": "text", "int": "an int", "float": "a float", "bool": "true or false"}


class UserError(Exception):
    """A mistake on the command line; the message is one line that says what was expected."""


def told(error: BaseException) -> str | None:
    """The message, in one line, of an error that was written for the user; None for a fault of ours.

    Written for the user is what a ``raise`` in this package states, what Lightning calls a misconfiguration, and what
    the Hub says where weights cannot be fetched. What some other code raises, called by us, is a fault.
    """
    file, by_raise = _origin(error)
    if "jsonargparse" in file and error.__cause__ is not None:
        return told(error.__cause__)  # a constructor refused its arguments
    fetching = "huggingface_hub" in file  # timm's weights, without a network
    stated = by_raise and not isinstance(error, AssertionError) and _speaks(Path(file), error)
    if stated or fetching or isinstance(error, (UserError, MisconfigurationException)):
        return " ".join(str(error).split()) or None
    return None


def _origin(error: BaseException) -> tuple[str, bool]:
    """The file that raised an error, and whether a ``raise`` there did."""
    trace = error.__traceback__
    if trace is None:
        return "", False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return code.co_filename, dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _speaks(file: Path, error: BaseException) -> bool:
    return file.is_relative_to(_PACKAGE) or (isinstance(error, ValueError) and file.is_relative_to(_TRAINER))


def one_line(message: str, options: Collection[str] = ()) -> str:
    """What jsonargparse says in many lines: the option, what it takes, and what was given.

    Args:
        message: of its parser.
        options: names that a misspelt one may have meant.
    """
    option = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    where = f"--{option}: " if option else ""
    if unknown := re.search(r"Option '([^']+)' is not accepted|[Uu]nrecognized arguments: (\S+)", message):
        name = (unknown[1] or unknown[2]).partition("=")[0]
        return f"{where}there is no option {name!r}. {did_you_mean(name, options)}".strip()
    if value := re.search(r"(?:Given value|Got value): ([^\n]+)", message):
        kinds = re.findall(r"Expected an? ([^\n]+?)(?:\. Got value|\n)", message[: value.end()])
        if kinds:
            expected = " or ".join(dict.fromkeys(_plain(kind) for kind in kinds))
            return f"{where}expected {expected}, got {value[1]!r}."
    rest = re.sub(r'^Parser key "[^"]+":', "", message)
    return f"{where}{' '.join(rest.split())}"


def _plain(kind: str) -> str:
    if choices := re.search(r"Literal\[(.*)\]", kind):
        return " or ".join(choices[1].split(", "))
    name = re.sub(r"<class '([^']+)'>", r"\1", kind).rpartition(".")[2]
    return _PLAIN.get(name, name)
