"""Rules for norms, reductions and pooling."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.channels.rules.compute import meet
from lightning_prune.channels.rules.registry import elementwise, rule
from lightning_prune.channels.rules.zeros import adds_beside, comes_to_zero
from lightning_prune.channels.trace.call import Call, Outcome, Value
from lightning_prune.functional.norms.compensated import SPACE


def _meet_affine(call: Call, channels: Tensor | None, *names: str) -> None:
    """The named vectors belong to these channels."""
    for name in names:
        tensor = call.arguments.get(name)
        if isinstance(tensor, Value) and 0 in tensor.axes:
            meet(call, channels, tensor.axes[0])


@rule("batch_norm", "native_batch_norm", "cudnn_batch_norm", "instance_norm")
def batch_norm(call: Call) -> Outcome:
    """Scale, β and statistics belong to the channels of dim 1.

    Statistics of this very input run over other dims too: of kernels that are standardised, over what they read.
    """
    x = call["input"]
    _meet_affine(call, x.axes.get(1), "weight", "bias", "running_mean", "running_var")
    adds_beside(call, x, 1)
    own = (1,) if call.arguments.get("training") else (0, 1) if call.arguments.get("use_input_stats") else tuple(x.axes)
    for dim in x.axes.keys() - set(own):
        call.freeze(x.axes[dim], "the statistics of its input run over these channels")
    return Value(call.shape, dict(x.axes))


COUNTED = "its statistics depend on the number of channels"
NOT_ZERO = "it counts channels that go as zeros, and what comes in there is not zero once their weights are"


def _counts_on(call: Call, channels: Tensor | None) -> bool:
    """Whether a norm may lose channels that its statistics are over: if so it goes on to count them, as zeros."""
    if channels is None or call.context.options.norms != "exact":
        return False
    if not comes_to_zero(call.node.args[0], call.context.zeros):
        call.freeze(channels, NOT_ZERO)
        return False
    return True


@rule("layer_norm", "rms_norm", f"{SPACE}::layer_norm", f"{SPACE}::rms_norm")
def layer_norm(call: Call) -> Outcome:
    """The statistics run over the normalised dims, so a missing channel changes all others, unless it is counted on."""
    x = call["input"]
    first = len(x.shape) - len(call["normalized_shape"])
    channels = x.axes.get(first)
    if first == len(x.shape) - 1 and _counts_on(call, channels):
        assert channels is not None
        call.consumes("input", x, first)
        call.width("normalized_shape", channels, 0)
        call.divides(channels, call.arguments.get("total", len(channels)))
        _meet_affine(call, channels, "weight", "bias")
        adds_beside(call, x, first)
        return Value(call.shape, dict(x.axes))
    for name in ("weight", "bias"):
        tensor = call.arguments.get(name)
        for labels in tensor.axes.values() if isinstance(tensor, Value) else ():
            call.freeze(labels, COUNTED)
    return call.keep_axes(x, {d: d for d in range(first)}, COUNTED)


@rule("group_norm", f"{SPACE}::group_norm")
def group_norm(call: Call) -> Outcome:
    """A group's statistics run over all of its channels and over space.

    It loses all channels or none, unless the norm goes on to count them: then each loses as many.
    """
    x, groups = call["input"], call["num_groups"]
    out = call.keep_axes(x, {0: 0, 1: 1}, "its statistics run over this dim")
    channels = x.axes.get(1)
    _meet_affine(call, channels, "weight", "bias")
    if channels is None:
        return out
    table = channels.view(groups, -1)
    if table.shape[1] > 1 and _counts_on(call, channels):
        call.consumes("input", x, 1)
        call.unite(table, table[:1])
        call.divides(channels, call.arguments.get("total", len(channels)))
        return out
    if groups == 1 or "total" in call.arguments:
        call.freeze(channels, COUNTED)
        return out
    call.unite(table, table[:, :1])
    call.width("num_groups", table[:, 0].contiguous())
    return out


@rule("softmax", "_softmax", "log_softmax", "cumsum", "cumprod", "sort", "topk", "argsort", "logcumsumexp")
def along(call: Call) -> Outcome:
    """The dim that the operator runs along cannot lose entries: the others would change."""
    return call.keep_in_all(call.dims_but(call.dim()), "runs along the channels")


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm",
      "linalg_vector_norm", "logsumexp", "prod", "argmax", "argmin", "any", "all")  # fmt: skip
def reduce(call: Call) -> Outcome:
    """The reduced dims go; a labelled one freezes, because its length or its members enter the result."""
    if call.arguments.get("other") is not None:
        return elementwise(call)
    rank, gone = len(call.x.shape), call.dims()
    keepdim = len(call.out_shapes[0]) == rank
    rest = [d for d in range(rank) if d not in gone]
    return call.keep_in_all({d: d if keepdim else i for i, d in enumerate(rest)}, "reduces over the channels")


@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
      "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
      "adaptive_max_pool2d", "lp_pool2d", "max_pool2d_with_indices", "upsample_nearest1d",
      "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
      "_upsample_nearest_exact2d", "_adaptive_avg_pool2d", "upsample_linear1d", "upsample_trilinear3d",
      "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler")  # fmt: skip
def pool(call: Call) -> Outcome:
    """Windows over the spatial dims; channels pass."""
    spatial = int(next((c for c in call.name if c in "123"), "2"))
    return call.keep_in_all({d: d for d in range(len(call.x.shape) - spatial)}, "windows over the channels")


@rule("normalize")
def normalize(call: Call) -> Outcome:
    """x / ||x|| along a dim."""
    return call.keep_axes(call.x, call.dims_but(call.dim()), "normalised over the channels")
