"""Steps on maps, and those that go on anything."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.channels.grammar import modules as own
from tests.channels.grammar.steps import ANY, BY, WIDTHS, Pick, Value, divisors, step


def _conv(x: Value, out: int, kernel: int, stride: int, groups: int, bias: bool) -> nn.Module:
    kind = getattr(nn, f"Conv{len(x.shape) - 1}d")
    return kind(x.channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)


@step("map", build=_conv)
def conv(pick: Pick, x: Value) -> dict[str, Any]:
    out, kind = pick((x.channels, x.channels, *WIDTHS)), pick(("plain", "plain", "plain", "grouped", "depthwise"))
    groups = 1
    if kind == "depthwise":
        out, groups = x.channels * pick((1, 1, 2)), x.channels
    elif kind == "grouped":
        groups = pick(divisors(x.channels, out) or [1])
    kernel = pick((1, 3)) if min(x.shape[1:]) > 1 else 1
    stride = pick((1, 1, 2)) if min(x.shape[1:]) > 3 else 1
    return {"out": out, "kernel": kernel, "stride": stride, "groups": groups, "bias": pick((True, False))}


@step(
    "map",
    build=lambda x, out, groups: getattr(nn, f"ConvTranspose{len(x.shape) - 1}d")(x.channels, out, 2, 2, groups=groups),
)
def transposed_conv(pick: Pick, x: Value) -> dict[str, Any] | None:
    out = pick((x.channels, *WIDTHS))
    return {"out": out, "groups": pick([1, 1, *divisors(x.channels, out)])} if max(x.shape[1:]) < 9 else None


def _batch_norm(x: Value, affine: bool, zero: bool) -> nn.Module:
    norm = getattr(nn, f"BatchNorm{max(len(x.shape) - 1, 1)}d")(x.channels, affine=affine)
    if zero and affine:
        nn.init.zeros_(norm.weight)
    return norm


@step("map|vector", build=_batch_norm)
def batch_norm(pick: Pick, x: Value) -> dict[str, Any]:
    return {"affine": pick((True, True, True, False)), "zero": pick((False, False, False, True))}


@step("map|vector", build=lambda x, groups: nn.GroupNorm(groups, x.channels))
def group_norm(pick: Pick, x: Value) -> dict[str, Any] | None:
    groups = pick([*divisors(x.channels), 1])
    return {"groups": groups} if x.kind == "map" or x.channels > groups else None


@step(ANY, build=lambda x: (own.Norm2d if x.kind == "map" else nn.LayerNorm)(x.channels))
def layer_norm(pick: Pick, x: Value) -> dict[str, Any]:
    return {}


@step("map", build=lambda x, affine: getattr(nn, f"InstanceNorm{len(x.shape) - 1}d")(x.channels, affine=affine))
def instance_norm(pick: Pick, x: Value) -> dict[str, Any] | None:
    return {"affine": pick((True, False))} if min(x.shape[1:]) > 1 else None


@step("map|vector", build=lambda x, each: nn.PReLU(x.channels if each else 1))
def prelu(pick: Pick, x: Value) -> dict[str, Any]:
    return {"each": pick((False, True))}


@step("map", build=lambda x, how: getattr(nn, f"{how}Pool{len(x.shape) - 1}d")(2))
def pool(pick: Pick, x: Value) -> dict[str, Any] | None:
    return {"how": pick(("Max", "Avg", "AdaptiveAvg", "AdaptiveMax"))} if min(x.shape[1:]) > 1 else None


@step("map", build=lambda x: nn.Upsample(scale_factor=2))
def upsample(pick: Pick, x: Value) -> dict[str, Any] | None:
    return {} if max(x.shape[1:]) < 9 else None


@step("map", build=lambda x, up: nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2))
def pixel_shuffle(pick: Pick, x: Value) -> dict[str, Any] | None:
    if len(x.shape) != 3:
        return None
    ways = [w for w, fits in ((True, x.channels % 4 == 0), (False, all(s % 2 == 0 for s in x.shape[1:]))) if fits]
    return {"up": pick(ways)} if ways and x.channels < 13 else None


@step("map", build=lambda x, groups, by: own.Shuffle(x.channels, groups, by))
def channel_shuffle(pick: Pick, x: Value) -> dict[str, Any] | None:
    found = [d for d in divisors(x.channels) if d < x.channels]
    return {"groups": pick(found), "by": pick(BY)} if found else None


@step(ANY, build=lambda x, first, how, by: own.Parts([first, x.channels - first], how, by, x.dim))
def parts(pick: Pick, x: Value) -> dict[str, Any] | None:
    if x.channels < 4:
        return None
    how = pick(("split", "chunk", "slice"))
    first = x.channels // 2 if how == "chunk" else pick(range(2, x.channels - 1))
    return None if how == "chunk" and x.channels % 2 else {"first": first, "how": how, "by": pick(BY)}


@step("map", build=lambda x, hidden: own.Gate(x.channels, hidden))
def squeeze_and_excitation(pick: Pick, x: Value) -> dict[str, Any]:
    return {"hidden": pick((4, 5))}


def _vector_of_its_own(x: Value, how: str) -> nn.Module:
    shape = (x.channels, *(1,) * (len(x.shape) - 1)) if x.kind == "map" else x.shape
    return own.Scaled(shape, how)


@step(ANY, build=_vector_of_its_own)
def vector_of_its_own(pick: Pick, x: Value) -> dict[str, Any]:
    return {"how": pick(("scale", "shift"))}


@step("map", build=lambda x, before, after: nn.ConstantPad3d((*(0, 0) * (len(x.shape) - 1), before, after), 0.0))
def padded_channels(pick: Pick, x: Value) -> dict[str, Any]:
    return {"before": pick((0, 2)), "after": pick((1, 0))}


@step(ANY, build=lambda x: nn.GLU(x.dim))
def glu(pick: Pick, x: Value) -> dict[str, Any] | None:
    return None if x.channels % 2 or x.channels < 4 else {}


@step(ANY, build=lambda x: nn.Dropout(0.5))
def dropout(pick: Pick, x: Value) -> dict[str, Any]:
    return {}


@step(ANY, ANY, build=lambda x, y: own.Cat(x.dim))
def cat(pick: Pick, x: Value, y: Value) -> dict[str, Any] | None:
    rest = [v.shape[1:] if v.kind == "map" else v.shape[:-1] for v in (x, y)]
    return {} if x.kind == y.kind and rest[0] == rest[1] and x.channels + y.channels < 25 else None


@step("map", "vector", build=lambda x, y: own.Does("gate"))
def gate(pick: Pick, x: Value, y: Value) -> dict[str, Any] | None:
    return {} if x.channels == y.channels else None
