"""Names and arguments from a file: what is let through, and how little the rest can cost."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import timm
import torch
from torch import nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.errors import RecipeError
from lightning_prune.io.rebuild import build, build_meta, first_difference
from lightning_prune.io.recipe import FORBIDDEN, check_recipe, plain_kwargs, recipe_of
from tests.memory import memory_below


def specs(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {key: (tuple(t.shape), t.dtype) for key, t in model.state_dict().items()}


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18",
        "hf_hub:timm/resnet18",
        "local-dir:/tmp/model",
        "../resnet18",
        "resnet18/x",
        "/etc/passwd",
        "os.system",
        "no_such_net",
        "__import__",
        "",
        "r" * 1000,
        None,
        7,
        ["resnet18"],
    ],
)
def test_names_that_are_not_timms_are_refused(name: Any) -> None:
    with pytest.raises(RecipeError):
        check_recipe(name, {}, 10)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "resnet20_cifar"])
def test_names_that_are_timms_pass(name: str) -> None:
    check_recipe(name, {"num_classes": 10, "act_layer": "relu", "drop_rate": 0.1, "img_size": [64, 64]}, 10)


@pytest.mark.parametrize("key", sorted(FORBIDDEN))
def test_arguments_that_leave_the_architecture_are_refused_at_any_depth(key: str) -> None:
    for kwargs in ({key: "x"}, {"cfg": {key: "x"}}, {"cfg": [{"inner": [{key: None}]}]}):
        with pytest.raises(RecipeError, match=key):
            check_recipe("resnet18", kwargs, 10)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 10**12},
        {"num_classes": -(10**12)},
        {"num_classes": 8193},
        {"depths": [1] * 257},
        {"depths": [10**6]},
        {"cfg": {str(i) + "a": 1 for i in range(300)}},
        {"a": [[[[[[[[1]]]]]]]]},
        {"act_layer": "r" * 300},
        {"drop_rate": float("inf")},
        {"drop_rate": float("nan")},
        {"not a name": 1},
        {"": 1},
        {f"k{i}": 1 for i in range(300)},
        {f"k{i}": ["x" * 256] * 200 for i in range(5)},
        {"act_layer": nn.ReLU},
        [],
        None,
        "x",
    ],
)
def test_arguments_that_are_large_or_not_plain_are_refused(kwargs: Any) -> None:
    with pytest.raises(RecipeError):
        check_recipe("resnet18", kwargs, 10)


def test_large_numbers_pass_if_a_tensor_is_as_large() -> None:
    check_recipe("resnet18", {"num_classes": 21843}, largest_dim=21843)


def test_plain_kwargs_names_what_is_not_json() -> None:
    assert plain_kwargs({"img_size": (64, 64), "x": None}) == {"img_size": [64, 64], "x": None}
    with pytest.raises(RecipeError, match="act_layer"):
        plain_kwargs({"img_size": 64, "act_layer": nn.ReLU})
    with pytest.raises(RecipeError, match="drop_rate"):
        plain_kwargs({"drop_rate": float("nan")})


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"depth": 8192}),
        ("resnet18", {"layers": [8192, 8192, 8192, 8192]}),
        ("convnext_atto", {"depths": [8192] * 4}),
    ],
)
def test_a_build_without_end_is_stopped(name: str, kwargs: dict[str, Any]) -> None:
    check_recipe(name, kwargs, 10)
    with memory_below(200 * 2**20), pytest.raises(RecipeError, match=r"parts|cannot build"):
        build_meta(name, kwargs, tensors=5)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 8192, "num_heads": 1, "depth": 1, "img_size": 8192}),
        ("resnet18", {"num_classes": 8192, "in_chans": 8192}),
    ],
)
def test_a_large_build_on_meta_takes_no_memory(name: str, kwargs: dict[str, Any]) -> None:
    with memory_below(2**24):
        model = build_meta(name, kwargs, tensors=200)
    assert all(p.is_meta for p in model.parameters())


def test_large_tensors_outside_the_state_dict_are_refused() -> None:
    """Relative positions of Swin are a buffer that is not saved, of the fourth power of the window size."""
    kwargs = {"window_size": 512, "img_size": 2048, "depths": [1], "embed_dim": 32, "num_heads": [1]}
    with memory_below(2**26):
        meta = build_meta("swin_tiny_patch4_window7_224", kwargs, tensors=100)
        with pytest.raises(RecipeError, match="not in the file"):
            build(meta, "swin_tiny_patch4_window7_224", kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("resnet18", {"no_such_argument": 1}), ("resnet18.no_such_tag", {}), ("resnet18", {"width": "x"})],
)
def test_what_timm_cannot_build_is_a_recipe_error(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="cannot build"):
        build_meta(name, kwargs, 100)


def test_the_limit_holds_for_its_own_thread_and_is_taken_away() -> None:
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            nn.Sequential(*(nn.Identity() for _ in range(20_000)))
        except BaseException as error:
            failures.append(error)

    class Slow(nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            self.layer = nn.Linear(2, 2)

    original = timm.create_model
    try:
        timm.create_model = lambda *_, **__: Slow()
        build_meta("resnet18", {}, 2)
    finally:
        timm.create_model = original
    assert failures == []
    with pytest.raises(RecipeError):
        build_meta("vit_tiny_patch16_224", {"depth": 8192}, 2)
    nn.Sequential(*(nn.Identity() for _ in range(20_000)))  # no limit is left behind


def test_first_difference_names_the_first_key_and_both_sides() -> None:
    model = timm.create_model("resnet20_cifar", width=4)
    wanted = specs(model)
    assert first_difference(model, wanted) is None
    assert (
        first_difference(model, {k: (s, torch.float16 if d.is_floating_point else d) for k, (s, d) in wanted.items()})
        is None
    )
    shape = first_difference(model, wanted | {"layer2.0.conv1.weight": ((9, 4, 3, 3), torch.float32)})
    assert shape is not None
    assert all(part in shape for part in ("layer2.0.conv1.weight", "(8, 4, 3, 3)", "(9, 4, 3, 3)"))
    dtype = first_difference(model, wanted | {"bn1.num_batches_tracked": ((), torch.float32)})
    assert dtype is not None
    assert "bn1.num_batches_tracked" in dtype
    missing = first_difference(model, {k: v for k, v in wanted.items() if k not in ("bn1.bias", "head.fc.bias")})
    assert missing is not None
    assert "bn1.bias" in missing
    extra = first_difference(model, wanted | {"more": ((), torch.float32)})
    assert extra is not None
    assert "more" in extra


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {"num_classes": 3, "in_chans": 1, "global_pool": "max"}),
        ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 0}),
        ("mixnet_s", {"drop_rate": 0.2}),
        ("resnet20_cifar", {"width": 6, "in_chans": 2}),
    ],
)
def test_a_model_tells_how_it_was_built(name: str, kwargs: dict[str, Any]) -> None:
    model = timm.create_model(name, **kwargs)
    found, arguments = recipe_of(model, model)
    assert found is not None
    assert found.split(".")[0] == name
    rebuilt = timm.create_model(found, pretrained=False, **plain_kwargs(arguments))
    assert first_difference(rebuilt, specs(model)) is None
    assert repr(rebuilt) == repr(model)  # pooling and dropout too, which no shape shows
    assert rebuilt.pretrained_cfg == model.pretrained_cfg


def test_a_model_tells_of_its_new_head() -> None:
    model = timm.create_model("resnet18")
    model.reset_classifier(5)
    assert recipe_of(model, model)[1]["num_classes"] == 5
