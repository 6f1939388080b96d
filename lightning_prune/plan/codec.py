"""Plans as JSON: what `PruningPlan.to_json` writes, and strict reading of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_prune.errors import PlanError
from lightning_prune.plan.cut import Change, Cut
from lightning_prune.plan.factor import Factor
from lightning_prune.support import schema
from lightning_prune.support.schema import is_count, is_int, is_list, is_object

FORMAT = "lightning_prune.plan.plan"
VERSION = 2
FIRST = 1  # of plans without denominators, which are still written so
FORMS = ("eager", "graph")
MOST_STAGES = 64  # that are remembered; to rewrite a graph so many times takes minutes
FIELDS = ("form", "inputs", "settings", "attributes", "index_lists", "tensors")


def to_data(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's fields as plain dicts, lists, numbers and strings. Equal index lists are stored once."""
    lists: dict[tuple[int, ...], int] = {}
    tensors = {
        name: {"shape": list(cut.shape), "kept": {str(d): lists.setdefault(k, len(lists)) for d, k in cut.kept.items()}}
        for name, cut in fields["cuts"].items()
    }
    data = {
        "format": FORMAT,
        "version": VERSION if fields["denominators"] else FIRST,
        "form": fields["form"],
        "inputs": [[list(shape), dtype] for shape, dtype in fields["inputs"]],
        "settings": fields["settings"],
        "attributes": {
            module: {name: [change.before, change.after] for name, change in changes.items()}
            for module, changes in fields["attributes"].items()
        },
        "index_lists": [list(indices) for indices in lists],
        "tensors": tensors,
    }
    if fields["empty"]:
        data["empty"] = list(fields["empty"])
    if fields["denominators"]:
        data["denominators"] = fields["denominators"]
    if fields["factors"]:
        data["factors"] = {path: {"shape": list(f.shape), "rank": f.rank} for path, f in fields["factors"].items()}
    if fields["stages"]:
        data["stages"] = [to_data(vars(stage)) for stage in fields["stages"]]
    return data


def parse(text: str) -> Any:
    """What JSON text holds; raises `PlanError` if it is none."""
    try:
        return schema.parse(text)
    except ValueError as error:
        raise PlanError(f"this is not a pruning plan: {type(error).__name__}: {error}") from error


def from_data(data: Any) -> dict[str, Any]:
    """A plan's fields from what `to_data` returned, after it was JSON. Types are checked, down to the last index.

    Whether the plan fits a model is checked when it is applied. Raises `PlanError` at the first thing that is wrong.
    """
    data = _object(data, "the plan")
    if data.get("format") != FORMAT or not is_int(data.get("version")) or not FIRST <= data["version"] <= VERSION:
        found = {k: data.get(k) for k in ("format", "version")}
        raise PlanError(
            f"expected a plan with format={FORMAT!r} and version={FIRST} or {VERSION}, found {found!r:.200}; "
            "a newer version of this library may read it"
        )
    missing = [name for name in FIELDS if name not in data]
    if missing:
        raise PlanError(f"this is not a pruning plan: it has no {missing[0]!r}")
    if data["form"] not in FORMS:
        raise PlanError(f"the plan has form={data['form']!r:.100}: expected one of {FORMS}")
    lists = [_ints(entry, f"index list {i}") for i, entry in enumerate(_list(data["index_lists"], "index_lists"))]
    return {
        "cuts": {name: _cut(name, entry, lists) for name, entry in _object(data["tensors"], "tensors").items()},
        "attributes": {
            module: {
                name: _change(f"{module}.{name}", pair)
                for name, pair in _object(changes, f"the attributes of {module!r}").items()
            }
            for module, changes in _object(data["attributes"], "attributes").items()
        },
        "form": data["form"],
        "inputs": tuple(_input(i, entry) for i, entry in enumerate(_list(data["inputs"], "inputs"))),
        "settings": _object(data["settings"], "settings"),
        "empty": _paths(data.get("empty", [])),  # plans of before have none
        "denominators": _denominators(data.get("denominators", {}), data["version"]),
        "factors": {path: _factor(path, f) for path, f in _object(data.get("factors", {}), "factors").items()},
    }


def stages_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each stage of a plan, from what `to_data` returned; none for a plan of one stage."""
    stages = _list(data.get("stages", []), "stages")
    if len(stages) > MOST_STAGES:
        raise PlanError(f"the plan has {len(stages)} stages: expected at most {MOST_STAGES}")
    return [from_data(stage) for stage in stages]


def _object(value: Any, what: str) -> dict[str, Any]:
    if not is_object(value):
        raise PlanError(f"this is not a pruning plan: {what:.200} is not an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not is_list(value):
        raise PlanError(f"this is not a pruning plan: {what:.200} is not a list")
    return value


def _ints(value: Any, what: str) -> tuple[int, ...]:
    for number in _list(value, what):
        if not is_int(number):
            raise PlanError(f"{what:.200} of the plan holds {number!r:.100}: expected whole numbers only")
    return tuple(value)


def _paths(value: Any) -> tuple[str, ...]:
    paths = _list(value, "empty")
    if not all(isinstance(path, str) for path in paths) or len(set(map(str, paths))) < len(paths):
        raise PlanError(f"this is not a pruning plan: empty is {value!r:.100}, expected module paths, each once")
    return tuple(sorted(paths))


def _denominators(value: Any, version: int) -> dict[str, int]:
    counts = _object(value, "denominators")
    for path, count in counts.items():
        if version == FIRST or not is_int(count) or count < 1:
            raise PlanError(
                f"the plan of version {version} divides by {count!r:.100} at {path!r:.200}: expected a positive count, "
                f"and version {VERSION}"
            )
    return dict(counts)


def _cut(name: str, entry: Any, lists: list[tuple[int, ...]]) -> Cut:
    entry = _object(entry, f"the entry of {name!r}")
    kept = {}
    for dim, index in _object(entry.get("kept"), f"what is kept of {name!r}").items():
        if not dim.isdecimal() or len(dim) > 3:
            raise PlanError(f"the plan cuts dim {dim!r:.100} of {name!r:.200}: expected a whole number")
        if not is_count(index, len(lists) - 1):
            raise PlanError(f"dim {dim} of {name!r:.200} refers to index list {index!r:.100}, of {len(lists)}")
        kept[int(dim)] = lists[index]
    return Cut(_ints(entry.get("shape"), f"the shape of {name!r}"), kept)


def _factor(path: str, entry: Any) -> Factor:
    entry = _object(entry, f"the factor of {path!r}")
    factor = Factor(_ints(entry.get("shape"), f"the shape of {path!r}"), entry.get("rank"))
    if not is_int(factor.rank) or any(size < 1 for size in factor.shape):
        raise PlanError(f"the factor of {path!r:.200} has shape {factor.shape} and rank {factor.rank!r:.100}")
    factor.check(path)
    return factor


def _change(name: str, pair: Any) -> Change:
    pair = _list(pair, f"the change of {name}")
    if len(pair) != 2:
        raise PlanError(f"the change of {name:.200} has {len(pair)} values: expected before and after")
    before, after = (v if is_int(v) or not isinstance(v, list) else _ints(v, f"attribute {name}") for v in pair)
    for value in (before, after):
        if not is_int(value) and not isinstance(value, tuple):
            raise PlanError(f"attribute {name:.200} of the plan is {value!r:.100}: expected whole numbers")
    return Change(before, after)


def _input(position: int, entry: Any) -> tuple[tuple[int, ...], str]:
    what = f"input {position}"
    entry = _list(entry, what)
    if len(entry) != 2 or not isinstance(entry[1], str):
        raise PlanError(f"{what} of the plan is {entry!r:.100}: expected a shape and a dtype")
    return _ints(entry[0], f"the shape of {what}"), entry[1]
