"""The picture of a channel graph: its layers, what goes together, what stays and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.colors import to_hex
from torch import Tensor, nn

from lightning_prune import ChannelGraph
from lightning_prune.plots import channel_graph
from lightning_prune.plots.channels import boxes_of


class Residual(nn.Module):
    """A stem, a block with a shortcut, and a classifier on a norm that freezes what enters it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 5, 1)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.fc(torch.layer_norm(self.last(x).mean((2, 3)), (5,)))


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return ChannelGraph.trace(Residual(), torch.randn(1, 3, 4, 4))


def test_boxes_are_the_layers_and_where_paths_join(graph: ChannelGraph) -> None:
    boxes = {box.name: box for box in boxes_of(graph)}
    (join,) = [name for name, box in boxes.items() if box.joins]
    assert {name: box.after for name, box in boxes.items()} == {
        "stem.weight": (),
        "inner.weight": ("stem.weight",),
        "outer.weight": ("inner.weight",),
        join: ("stem.weight", "outer.weight"),
        "last.weight": (join,),
        "fc.weight": ("last.weight",),
    }
    assert boxes["stem.weight"].part == boxes["outer.weight"].part != boxes["inner.weight"].part
    assert [boxes[f"{n}.weight"].part for n in ("last", "fc")] == [-1, -1]
    assert [(boxes[f"{n}.weight"].removable, boxes[f"{n}.weight"].channels) for n in ("inner", "last")] == [
        (6, 6),
        (0, 5),
    ]
    assert "layer_norm" in boxes["last.weight"].reasons[0]


def test_the_picture_shows_them(graph: ChannelGraph) -> None:
    figure = channel_graph(graph)
    (ax,) = figure.axes
    texts: dict[str, Any] = {text.get_gid(): text for text in ax.texts if text.get_gid()}
    assert set(texts) == {f"{n}.weight" for n in ("stem", "inner", "outer", "last", "fc")}
    colours = {name: to_hex(text.get_bbox_patch().get_facecolor()) for name, text in texts.items()}
    assert colours["stem.weight"] == colours["outer.weight"] != colours["inner.weight"]
    assert colours["last.weight"] == colours["fc.weight"] == to_hex("0.75")
    assert texts["inner.weight"].get_text() == "inner\n6/6"
    number = texts["last.weight"].get_text().split("[")[1][0]
    reasons = [line for line in ax.get_title(loc="left").splitlines() if line.startswith(f"[{number}]")]
    assert "layer_norm" in reasons[0]
    assert len({text.get_position() for text in texts.values()}) == 5  # none on another
    arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None) is not None]
    assert len(arrows) == 6


def test_a_long_network_goes_on_below() -> None:
    layers = [nn.Conv2d(2, 2, 1) for _ in range(26)]
    figure = channel_graph(ChannelGraph.trace(nn.Sequential(*layers), torch.randn(1, 2, 3, 3)))
    places = [text.get_position() for text in figure.axes[0].texts if text.get_gid()]
    assert len(set(places)) == 26
    assert max(x for x, _ in places) < 12


def test_a_network_without_layers_is_named() -> None:
    with pytest.raises(ValueError, match="no layer with channels"):
        channel_graph(ChannelGraph.trace(nn.ReLU(), torch.randn(1, 2)))
