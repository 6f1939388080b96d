"""What the recipes say of themselves: the paper, what it reports, and where each constant comes from.

A recipe is a configuration file with a head of comments, ``# title``, ``# paper: ...``, ``# reports: ...`` and any
number of ``# note: ...``. Every constant ends in a comment that begins with its origin: ``source`` (the paper or its
authors' code, read), ``unverified`` (from memory or second-hand) or ``ours``, and a reason after a colon where there is
one to give. Names, folders and ``num_workers`` need none.

``python -m lightning_prune.recipes.describe`` prints the page docs/recipes.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lightning_prune.recipes import recipe_names, recipe_path

Origin = Literal["source", "unverified", "ours"]
UNTAGGED = ("class_path", "model_name", "root", "num_workers", "init_args", "model", "data", "prune", "trainer")

_LINE = re.compile(r"^ *(?:- )?(?P<key>[\w.]+):(?: (?P<value>[^#]*?))?(?: +# (?P<tag>.+))?$")
_ORIGINS = ("source", "unverified", "ours")


@dataclass(frozen=True)
class Constant:
    """One constant of a recipe: its name, its value as written, its origin, and why."""

    key: str
    value: str
    origin: Origin
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """What one recipe says of itself."""

    name: str
    title: str
    paper: str
    reports: str
    notes: tuple[str, ...]
    constants: tuple[Constant, ...]


def describe(name: str) -> Recipe:
    """Reads what a recipe says of itself.

    Args:
        name: one of `recipe_names`.

    Raises:
        ValueError: there is no such recipe, or it lacks a part of its head or the origin of a constant.
    """
    lines = recipe_path(name).read_text().splitlines()
    head = [line[2:] for line in lines if line.startswith("# ")]
    parts = {word: [h.removeprefix(f"{word}: ") for h in head if h.startswith(f"{word}: ")] for word in _HEAD}
    if not head or head[0].startswith(tuple(f"{word}: " for word in _HEAD)) or not parts["paper"]:
        raise ValueError(
            f"recipe {name} begins with {head[:1]}: its head is '# title', '# paper: ...', '# reports: ...'"
        )
    body = [line for line in lines if not line.startswith("#")]
    return Recipe(name, head[0], parts["paper"][0], " ".join(parts["reports"]), tuple(parts["note"]),
                  tuple(_constants(name, body)))  # fmt: skip


def page() -> str:
    """The page docs/recipes.md."""
    recipes = [describe(name) for name in recipe_names()]
    return "\n".join(
        [_PREAMBLE, *_overview(recipes), "", "## What is not from the source", "", _KEY, *_origins(recipes)]
    )


_HEAD = ("paper", "reports", "note")


def _constants(name: str, body: list[str]) -> list[Constant]:
    found: list[Constant] = []
    inside = -1  # the indent of a constant whose value goes on in deeper lines
    for line in body:
        indent = len(line) - len(line.lstrip())
        if 0 <= inside < indent:
            last = found[-1]
            found[-1] = Constant(last.key, f"{last.value}, {line.strip()}".lstrip(", "), last.origin, last.why)
            continue
        inside = -1
        match = _LINE.match(line)
        key = match["key"] if match else line.strip()
        if match and key in UNTAGGED:
            continue
        origin, _, why = (match["tag"] or "" if match else "").partition(": ")
        if origin not in _ORIGINS:
            tags = ", ".join(f"# {each}" for each in _ORIGINS)
            raise ValueError(f"recipe {name}: {line.strip()!r} does not end in one of '{tags}'.")
        assert match is not None
        found.append(Constant(key, match["value"] or "", origin, why))  # type: ignore[arg-type]
        inside = indent if not match["value"] else -1
    return found


def _overview(recipes: list[Recipe]) -> list[str]:
    rows = ["| recipe | what it runs | paper | reported there |", "|---|---|---|---|"]
    return rows + [f"| `{r.name}` | {r.title} | {r.paper} | {r.reports} |" for r in recipes]


def _origins(recipes: list[Recipe]) -> list[str]:
    lines: list[str] = []
    for r in recipes:
        lines += ["", f"### {r.name}", ""]
        lines += [" ".join(r.notes), ""] if r.notes else []
        rows = [c for c in r.constants if c.origin != "source"]
        lines += [f"- `{c.key}: {c.value}` {c.origin}{f': {c.why}' if c.why else ''}" for c in rows]
        lines += [] if rows else ["Every constant is from the source."]
    return lines


_PREAMBLE = """\
# Recipes

A recipe is a whole experiment of a paper as a configuration file of the command line, in the wheel. (This page is
written by `python -m lightning_prune.recipes.describe`, from the files.)

```bash
lightning-prune fit --config $(python -c "from lightning_prune.recipes import *; print(recipe_path('digits_ltp'))")
lightning-prune fit --recipe ltp_resnet50_imagenet --data.root /path/to/imagenet   # the same by name
```

Options after it win, as everywhere on the command line. In Python, `recipe_names()` lists them and `recipe_path(name)`
is the file.

- **Data**: CIFAR recipes read torchvision's folders below `--data.root` (`data`; `--data.download true` fetches them)
  and hold out a tenth for validation. ImageNet recipes read `train/<class>/` and `val/<class>/` below `--data.root`.
  The digits come with the package. enwik8 is one file, unpacked, or a folder that holds it.
- **Several devices**: `--trainer.devices 8 --trainer.strategy ddp`; `--data.batch_size` is each device's, so divide.
  Several nodes: `--trainer.num_nodes`. Loader processes: `--data.num_workers`.
- **Precision**: the ImageNet recipes say `bf16-mixed`; `--trainer.precision 16-mixed` suits older GPUs, `32-true` CPUs.
  `--model.channels_last true` is the memory format that convolutions are fastest in there.
- **Steps**: `warmup_steps` are those of the batch of the recipe.

Only the recipes on the digits were trained to their end here. Each of the others is run by a test for a batch in each
of its phases, on small images in its data set's form.
"""

_KEY = """\
*unverified*: from memory or second-hand. *ours*: where the source says nothing that we could read, or where our method
differs. What is not listed is from the paper or its authors' code."""


if __name__ == "__main__":
    print(page())
