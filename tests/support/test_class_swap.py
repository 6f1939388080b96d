"""Swaps of a module's class: one upon another, each taken back alone, and what copies and pickles keep."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.masks import HardGate, attach, detach, is_attached
from lightning_prune.support.swap.class_swap import data_key, is_swapped, original_class, recipe, restore, swap

X = torch.ones(1, 2)


@recipe("test twice", copied=True)
def _twice(base: type[nn.Module], factor: float) -> dict[str, object]:
    return {"forward": lambda self, x: factor * base.forward(self, x)}


@recipe("test shift", copied=False)
def _shift(base: type[nn.Module]) -> dict[str, object]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return base.forward(self, x) + self.__dict__[data_key("test shift")]

    return {"forward": forward}


def test_swaps_lie_upon_each_other_and_each_goes_alone() -> None:
    layer = nn.Linear(2, 2)
    plain = layer(X)
    swap(layer, "test twice", 2.0)
    swap(layer, "test shift", data=1.0)
    assert torch.equal(layer(X), 2 * plain + 1)
    swap(layer, "test twice", 3.0)  # in place of the first one, and now the last
    assert torch.equal(layer(X), 3 * (plain + 1))
    assert original_class(layer) is nn.Linear
    assert type(layer).__qualname__ == "Linear"
    restore(layer, "test shift")
    assert torch.equal(layer(X), 3 * plain)
    assert not is_swapped(layer, "test shift")
    assert data_key("test shift") not in vars(layer)
    restore(layer, "test twice")
    restore(layer, "test twice")
    assert type(layer) is nn.Linear


def test_equal_swaps_share_a_class() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    for layer in (first, second):
        swap(layer, "test twice", 2.0)
    assert type(first) is type(second)
    swap(second, "test twice", 3.0)
    assert type(first) is not type(second)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_what_a_recipe_says(again) -> None:
    layer = nn.Linear(2, 2)
    plain = layer(X)
    swap(layer, "test shift", data=1.0)
    other = again(layer)
    assert type(other) is nn.Linear
    assert data_key("test shift") not in vars(other)
    for top in (False, True):  # the swap that is kept lies under, then over the one that is not
        restore(layer, "test twice") if top else swap(layer, "test shift", data=1.0)
        swap(layer, "test twice", 2.0)
        other = again(layer)
        assert torch.equal(other(X), 2 * plain)
        assert original_class(other) is nn.Linear
        assert not is_swapped(other, "test shift")


def test_a_fresh_process_finds_the_recipe(tmp_path) -> None:
    layer = nn.BatchNorm2d(0)
    swap(layer, "empty", None)
    (tmp_path / "layer").write_bytes(pickle.dumps(layer))
    code = (
        "import pickle, sys, torch; layer = pickle.load(open(sys.argv[1], 'rb'));"
        "assert layer(torch.ones(1, 0, 2, 2)).shape == (1, 0, 2, 2)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "layer")], check=True)


def test_gates_come_off_a_layer_that_is_swapped_otherwise_too() -> None:
    layer = nn.Linear(2, 2)
    swap(layer, "test twice", 2.0)
    attach(layer, {"weight": HardGate(torch.tensor(1e9))})
    assert is_attached(layer)
    assert int(torch.count_nonzero(layer.weight)) == 0
    assert not is_attached(copy.deepcopy(layer))
    detach(layer)
    assert is_swapped(layer, "test twice")
    assert int(torch.count_nonzero(layer.weight)) == 4
