"""Arguments: one parser for all commands, whose errors are one line, and what can be said of them before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lightning_prune.cli.mistakes import UserError, one_line
from lightning_prune.support.near import did_you_mean

PROGRAM = "lightning-prune"
_CLASSES = ("trainer", "model")  # whose options the parser knows, each by its name


class Parser(LightningArgumentParser):
    """A parser that raises `UserError`, with names that come near a misspelt one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse asks a parser within a parser, and puts its answer into its own
            super().error(message, ex)
        raise UserError(one_line(message, self.names())) from ex

    def names(self) -> list[str]:
        """The options, as they are written."""
        return [name for name in self._option_string_actions if name.startswith("--")]


def pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name without dashes, value) of each option, ``--name=value`` or ``--name value``; "" where there is no value."""
    for i, arg in enumerate(args):
        if arg.startswith("--") and len(arg) > 2:
            name, equals, value = arg[2:].partition("=")
            if not equals and i + 1 < len(args) and not args[i + 1].startswith("--"):
                value = args[i + 1]
            yield name, value


def value_of(args: Sequence[str], name: str) -> str | None:
    """The value of an option; the last one wins, None if it is not given."""
    values = [value for given, value in pairs(args) if given == name]
    return values[-1] if values else None


def without(args: Sequence[str], *names: str) -> list[str]:
    """The arguments but for those options and their values."""
    left, skip = [], False
    for i, arg in enumerate(args):
        given, equals, _ = arg.partition("=")
        if skip:
            skip = False
        elif given in [f"--{name}" for name in names]:
            skip = not equals and i + 1 < len(args) and not args[i + 1].startswith("--")
        else:
            left.append(arg)
    return left


def check_file(path: str, what: str) -> Path:
    """A file that is there.

    Raises:
        UserError: it is not; the message names files of the folder that come near.
    """
    file = Path(path)
    if file.is_file():
        return file
    there = sorted(p.name for p in file.parent.iterdir()) if file.parent.is_dir() else []
    near = did_you_mean(file.name, there, 0.5)
    place = "" if file.parent.is_dir() else f" There is no folder {file.parent} either."
    kind = " It is a folder." if file.is_dir() else ""
    raise UserError(" ".join(f"there is no {what} {path}.{kind}{place} {near}".split()))


def check_names(args: Sequence[str], known: Sequence[str], bases: Mapping[str, tuple[type, str]]) -> dict[str, type]:
    """Refuse misspelt options and classes before anything is built; what is left out here, the parser will say.

    Args:
        args: the command line; options in its configuration files are checked too.
        known: options of the parser, with dashes.
        bases: {option whose value is a class: (base of those that it may be, class path of the default)}.

    Returns:
        The class that each of those options names; without those that are not given, or cannot be told.

    Raises:
        UserError: an option or a class is not known; the message names near ones.
    """
    given = list(_expanded(args, bases))
    chosen = {key: _chosen(given, key, base, default) for key, (base, default) in bases.items()}
    for name, value in given:
        name = name.removesuffix("+")
        group, _, option = name.partition(".")
        if group in bases and option == "help" and value:
            _chosen([(group, value)], group, bases[group][0], "")
        if f"--{name}" in known or option == "help":
            continue
        cls = chosen.get(group)
        if cls is not None:
            option = option.removeprefix("init_args.").partition(".")[0]
            options = options_of_class(cls)
            if option not in (*options, "class_path", "init_args", "dict_kwargs"):
                hint = did_you_mean(option, options) or f"There are: {', '.join(sorted(options))}."
                raise UserError(f"{cls.__name__} has no option --{group}.{option}. {hint}")
        elif group not in bases and not any(f"--{part}" in known and part not in _CLASSES for part in _above(name)):
            hint = did_you_mean(f"--{name}", known) or "See --help.all for all options."
            raise UserError(f"there is no option --{name}. {hint}")
    return {key: cls for key, cls in chosen.items() if cls is not None}


def _expanded(args: Sequence[str], bases: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options of a command line, with those of configuration files in the place of the file."""
    for name, value in pairs(args):
        if name in ("config", "c"):
            yield from _options_in(check_file(value, "configuration file"), bases)
        else:
            yield name, value


def _options_in(file: Path, bases: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the parser says where
    for key, value in content.items() if isinstance(content, dict) else ():
        if key in bases and isinstance(value, dict) and "class_path" in value:
            yield key, str(value["class_path"])
            yield from ((f"{key}.{option}", str(each)) for option, each in (value.get("init_args") or {}).items())
        elif key in _CLASSES and isinstance(value, dict):
            yield from ((f"{key}.{option}", str(each)) for option, each in value.items())
        else:
            yield key, str(value)


def _above(name: str) -> Iterator[str]:
    """a.b.c -> a.b, a: an option may be the inside of another one, such as --trainer.callbacks.at, --optimizer.lr."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _chosen(given: Sequence[tuple[str, str]], key: str, base: type, default: str) -> type | None:
    """The class that an option names, at last."""
    value = next((v for name, v in reversed(given) if name in (key, f"{key}.class_path")), default)
    if value in ("", "null", "None") or value.endswith((".yaml", ".yml", ".json")) or value.startswith("{"):
        return None
    names = {cls.__name__: cls for cls in subclasses(base)}
    module, _, name = value.rpartition(".")
    if module and not module.startswith("lightning_prune"):
        return _imported(module, name)
    if name not in names:
        hint = did_you_mean(name, names) or f"There are: {', '.join(sorted(names))}."
        raise UserError(f"there is no --{key} {value}. {hint} A class of your own is named in full: module.Class.")
    return names[name]


def _imported(module: str, name: str) -> type | None:
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return None  # the parser says so
    return found if isinstance(found, type) else None


def subclasses(base: type) -> list[type]:
    """The public classes below one, of this package's modules and of those that were imported."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *subclasses(child))]
    return list(dict.fromkeys(cls for cls in found if cls.__name__[0] != "_"))


def options_of_class(cls: type) -> list[str]:
    """The arguments of a constructor, those handed on by ``**kwargs`` included."""
    names: dict[str, Any] = {}
    for each in cls.__mro__:
        if "__init__" in vars(each):
            parameters = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]
            names |= {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return list(names)
