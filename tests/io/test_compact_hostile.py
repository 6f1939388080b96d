"""Pruning plans in files made to do harm: each gives PrunedFileError that names what is wrong, and costs no memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.channels import PlanError, PruningPlan, prune_channels
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from tests.io.tampering import OLD, put_together, take_apart, write_raw
from tests.memory import memory_below

Tamper = Callable[[dict[str, Any]], Any]  # changes the plan
NAME = "layer1.0.conv1.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = timm.create_model("resnet20_cifar", width=4)
    keep = {"layer1.0.bn1": [0, 3], "layer2.1.bn1": [1, 2, 5]}
    prune_channels(model, torch.randn(2, 3, 16, 16), keep=keep, verify=False, form="eager")
    return save_pruned(model, tmp_path_factory.mktemp("good") / "m.safetensors")


def change(path: tuple[str, ...], value: Any) -> Tamper:
    """Sets one place of the plan."""

    def tamper(plan: dict[str, Any]) -> None:
        for step in path[:-1]:
            plan = plan[step]
        plan[path[-1]] = value

    return tamper


def attribute(module: str, name: str, before: Any, after: Any) -> Tamper:
    return lambda plan: plan["attributes"].setdefault(module, {}).update({name: [before, after]})


def cut(name: str, shape: list[int], kept: list[int]) -> Tamper:
    """Adds a cut of dim 0."""

    def tamper(plan: dict[str, Any]) -> None:
        plan["index_lists"].append(kept)
        plan["tensors"][name] = {"shape": shape, "kept": {"0": len(plan["index_lists"]) - 1}}

    return tamper


def graph(**changes: Any) -> Tamper:
    return lambda plan: plan.update(form="graph", **changes)


def stages(*tampers: Tamper) -> Tamper:
    """Says that a plan came to be in one stage, after tampering with that."""

    def tamper(plan: dict[str, Any]) -> None:
        stage = json.loads(json.dumps(plan))
        for change_it in tampers:
            change_it(stage)
        plan["stages"] = [stage]

    return tamper


CONV = ("tensors", NAME)
TAMPERED: list[tuple[Tamper, str]] = [
    (change(("format",), "other"), "expected a plan with format"),
    (change(("version",), 3), "version"),
    (change(("version",), True), "version"),
    (change(("form",), "onnx"), "form='onnx'"),
    (change(("form",), ["graph"]), "form="),
    (change(("form",), None), "form=None"),
    (lambda plan: plan.pop("inputs"), "no 'inputs'"),
    (change(("tensors",), []), "tensors is not an object"),
    (change(("attributes",), "x"), "attributes is not an object"),
    (change(("index_lists",), {}), "index_lists is not a list"),
    (change(("index_lists",), [[0], 7]), "index list 1 is not a list"),
    (change(("index_lists",), [[0, 1.0]]), "1.0: expected whole numbers"),
    (change(("index_lists",), [[0, True]]), "True: expected whole numbers"),
    (change(("index_lists",), [["0"]]), "'0': expected whole numbers"),
    (change(("index_lists",), [[0]] * 3 + [[[[0]]]]), "expected whole numbers"),
    (change(("index_lists",), [list(range(10**5))]), "keep 100000 indices, more than"),
    (change(("index_lists",), [[0] * 100] * 1000), "keep 100000 indices, more than"),
    (change(CONV, 7), "not an object"),
    (change((*CONV, "shape"), [4.0, 4, 3, 3]), "expected whole numbers"),
    (change((*CONV, "shape"), [2**60, 4, 3, 3]), rf"{NAME} of shape"),
    (change((*CONV, "shape"), [2, 4, 3, 3]), rf"{NAME} of shape"),
    (change((*CONV, "kept"), {"0": -1}), "index list -1"),
    (change((*CONV, "kept"), {"0": 99}), "index list 99"),
    (change((*CONV, "kept"), {"0": True}), "index list True"),
    (change((*CONV, "kept"), {"0": [0, 3]}), "index list"),
    (change((*CONV, "kept"), {"-1": 0}), "dim '-1'"),
    (change((*CONV, "kept"), {"9": 0}), "cuts dim 9"),
    (change((*CONV, "kept"), {"1" * 5000: 0}), "expected a whole number"),
    (change((*CONV, "kept"), {}), rf"{NAME}.*was saved"),
    (lambda plan: plan["tensors"].pop(NAME), rf"{NAME}.*was saved"),
    (cut(NAME, [4, 4, 3, 3], [0]), rf"{NAME}.*\(1, 4, 3, 3\).*was saved"),
    (cut(NAME, [4, 4, 3, 3], []), "empty dim 0"),
    (cut(NAME, [4, 4, 3, 3], [3, 0]), "not increasing"),
    (cut(NAME, [4, 4, 3, 3], [0, 0]), "not increasing"),
    (cut(NAME, [4, 4, 3, 3], [0, 4]), "not increasing"),
    (cut(NAME, [4, 4, 3, 3], [-1, 3]), "not increasing"),
    (cut(NAME, [4, 4, 3, 3], [0, 10**30]), "not increasing"),
    (cut("no.such.weight", [4], [0]), r"no\.such\.weight"),
    (cut("layer1.0.conv2.bias", [4], [0]), r"layer1\.0\.conv2\.bias"),
    (attribute("nowhere", "width", 4, 2), "nowhere"),
    (attribute("", "no_such", 4, 2), "no_such"),
    (attribute("", "num_classes", 10, "x" * 10**5), "expected whole numbers"),
    (attribute("", "num_classes", 10, None), "expected whole numbers"),
    (attribute("", "num_classes", 10, True), "expected whole numbers"),
    (attribute("", "num_classes", 10, 9.5), "expected whole numbers"),
    (attribute("", "num_classes", 10, {"a": 1}), "expected whole numbers"),
    (attribute("", "num_classes", 10, [[1]]), "expected whole numbers"),
    (attribute("", "num_classes", 10, 10**12), "num_classes.*to 1000000000000"),
    (attribute("", "num_classes", 10, -1), "num_classes.*to -1"),
    (attribute("", "num_classes", 10, [9, 1]), "num_classes.*to 2 numbers"),
    (attribute("", "num_classes", 9, 8), "num_classes = 9, found 10"),
    (attribute("", "forward", 1, 0), "forward"),
    (attribute("", "training", 1, 0), "training"),
    (attribute("layer1.0.conv1", "_parameters", 1, 0), "_parameters"),
    (attribute("layer1.0.conv1", "weight", 1, 0), "weight"),
    (lambda plan: plan["attributes"].update({"layer1.0.conv1": {"out_channels": [4]}}), "1 values"),
    (lambda plan: plan["attributes"].update({"layer1.0.conv1": [4, 2]}), "not an object"),
    (change(("settings",), []), "settings is not an object"),
    (change(("settings",), {"groups": "all"}), "groups='all'"),
    (change(("settings",), {"groups": [["tie"]]}), "setting 'groups'"),
    (change(("settings",), {"attention": None}), "attention=None"),
    (change(("settings",), {"allow_inexact": "eca"}), "allow_inexact"),
    (change(("settings",), {"allow_inexact": ["x"]}), "allow_inexact"),
    (change(("settings",), {"note": "x" * 10**5}), "setting 'note'"),
    (change(("settings",), {"note": {"deep": {}}}), "setting 'note'"),
    (change(("settings",), {f"s{i}": 1 for i in range(100)}), "100 settings"),
    (change(("inputs",), [7]), "input 0 is not a list"),
    (change(("inputs",), [[[2, 3], 7]]), "shape and a dtype"),
    (change(("inputs",), [[[2, 3.5], "float32"]]), "expected whole numbers"),
    (graph(inputs=[[[10**6, 3, 10**4, 10**4], "float32"]]), "inputs of 1200000000000000 bytes"),
    (graph(inputs=[[[1, 3, 8, 8], "float32"]] * 100), "100 inputs"),
    (graph(inputs=[[[0, 2**40], "float32"]]), "no valid shape"),
    (graph(inputs=[[[-2, 3, 8, 8], "float32"]]), "no valid shape"),
    (graph(inputs=[[[2, 3, 8, 8], "load"]]), "dtype 'load'"),
    (graph(inputs=[[[2, 3, 8, 8], "complex64"]]), "dtype 'complex64'"),
    (graph(inputs=[[[2, 7, 8, 8], "float32"]]), "cannot be applied.*cannot be traced"),
    (graph(inputs=[]), "cannot be applied"),
    (change(("stages",), {}), "stages is not a list"),
    (change(("stages",), [7]), "the plan is not an object"),
    (change(("stages",), [{}] * 65), "65 stages"),
    (stages(lambda stage: stage["tensors"].pop(NAME)), "stages of the plan, one after the other"),
    (stages(change(("index_lists",), [[0] * 100] * 1800)), "keep 180000 indices, more than"),
    (stages(change(("inputs",), [[[10**6, 3, 10**4, 10**4], "float32"]])), "inputs of 1200000000000000 bytes"),
    (stages(change(("settings",), {"groups": "all"})), "groups='all'"),
    (stages(change(("settings",), {"note": {"deep": {}}})), "setting 'note'"),
]


def assert_refused(path: Path, match: str, limit: int | None = 2**24) -> None:
    for model in (None, timm.create_model("resnet20_cifar", width=4)):
        bound = memory_below(limit) if limit else nullcontext()
        with bound, pytest.raises(PrunedFileError, match=match) as caught:
            load_pruned(path, model)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1500 + len(str(path))
    assert len(pruned_state_dict(path)) > 10  # the tensors are all right and can be had without the plan


def test_the_files_own_parts_put_together_again_load(good: Path, tmp_path: Path) -> None:
    model = load_pruned(put_together(tmp_path / "same", *take_apart(good)))
    assert model.layer1[0].conv1.out_channels == 2
    assert list(take_apart(good)[1]["plans"]) == [""]


@pytest.mark.parametrize(("tamper", "match"), TAMPERED, ids=[f"{i}-{m[:24]}" for i, (_, m) in enumerate(TAMPERED)])
def test_a_plan_that_lies_is_refused(good: Path, tmp_path: Path, tamper: Tamper, match: str) -> None:
    header, info, data = take_apart(good)
    original = json.dumps(info)
    tamper(info["plans"][""])
    assert json.dumps(info) != original
    limit = None if "applied" in match else 2**24  # found out by tracing, which takes its time when it is watched
    assert_refused(put_together(tmp_path / "lie", header, info, data), match, limit)


@pytest.mark.parametrize(
    ("plans", "match"),
    [
        ([], "not an object"),
        (None, "not an object"),
        ({str(i): {} for i in range(100)}, "at most 16"),
        ({"": 7}, "not an object"),
        ({"": {}}, "expected a plan"),
        ({}, "was saved"),
        ("elsewhere", "'elsewhere', which the model does not have"),
        ("layer1..0", "which the model does not have"),
        ("forward", "which the model does not have"),
        ("layer1", "does not have"),
    ],
)
def test_plans_of_other_parts_are_refused(good: Path, tmp_path: Path, plans: Any, match: str) -> None:
    header, info, data = take_apart(good)
    info["plans"] = {plans: info["plans"][""]} if isinstance(plans, str) else plans
    assert_refused(put_together(tmp_path / "lie", header, info, data), match)


@pytest.mark.parametrize(("depth", "text"), [(100_000, "["), (0, "NaN"), (0, "9" * 5000), (0, '{"a": 1, "a": 2}')])
def test_a_plan_that_is_no_json_is_refused(tmp_path: Path, depth: int, text: str) -> None:
    header, info, data = take_apart(OLD / "format2.safetensors")
    info["plans"][""]["settings"] = {"x": "HERE"}
    raw = json.dumps(info).replace('"HERE"', text * max(depth, 1))
    path = write_raw(tmp_path / "lie", header | {"__metadata__": {"lightning_prune": raw}}, data)
    with memory_below(2**24), pytest.raises(PrunedFileError, match="not valid JSON"):
        load_pruned(path)


@pytest.mark.parametrize(
    ("number", "match"),
    [(1, "wrong fields for format 1"), (4, "format 4, not 1, 2 or 3. A newer"), (True, "format True")],
)
def test_the_format_says_whether_there_are_plans(tmp_path: Path, number: Any, match: str) -> None:
    header, info, data = take_apart(OLD / "format2.safetensors")
    with pytest.raises(PrunedFileError, match=match):
        load_pruned(put_together(tmp_path / "lie", header, info | {"format": number}, data))


def test_a_small_file_may_not_ask_for_a_large_dense_model(tmp_path: Path) -> None:
    """A plan that cuts every tensor of a model of 10 GB down to one channel: all of it fits together."""
    _, info, _ = take_apart(OLD / "format2.safetensors")
    with torch.device("meta"):
        large = timm.create_model("resnet20_cifar", width=1600)
    info["kwargs"] = {"width": 1600}
    plan = info["plans"][""]
    plan.update(index_lists=[[0]], attributes={}, tensors={})
    tensors, entries, data = {}, {}, b""
    for key, tensor in large.state_dict().items():
        dims = {str(d): 0 for d, n in enumerate(tensor.shape) if n > 3}
        plan["tensors"][key] = {"shape": list(tensor.shape), "kept": dims}
        shape = [1 if n > 3 else n for n in tensor.shape]
        dtype = "F32" if tensor.is_floating_point() else "I64"
        zeros = torch.zeros(shape, dtype=tensor.dtype).numpy().tobytes()
        tensors[key] = {"shape": shape, "dtype": dtype, "encoding": "dense"}
        entries[key] = {"shape": shape, "dtype": dtype, "data_offsets": [len(data), len(data) + len(zeros)]}
        data += zeros
    info["tensors"] = tensors
    path = put_together(tmp_path / "lie", {"__metadata__": {}, **entries}, info, data)
    with memory_below(2**24), pytest.raises(PrunedFileError, match=r"dense model takes \d{10,} bytes"):
        load_pruned(path)


def test_plans_outside_of_files_are_as_strict(good: Path) -> None:
    plan = take_apart(good)[1]["plans"][""]
    assert PruningPlan.from_json(json.dumps(plan)).cuts
    for tamper, match in TAMPERED:
        if "expected whole numbers" in match or "index list" in match or "form=" in match:
            changed = json.loads(json.dumps(plan))
            tamper(changed)
            with pytest.raises(PlanError, match=match):
                PruningPlan.from_json(json.dumps(changed))
    for text in ('{"a": ' * 100_000, '{"a": NaN}', '{"a": ' + "9" * 5000 + "}"):
        with pytest.raises(PlanError, match="not a pruning plan"):
            PruningPlan.from_json(text)
