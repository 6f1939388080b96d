"""A network as an ONNX file, written by PyTorch's exporter and compared with the network itself in onnxruntime."""

from __future__ import annotations

import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from lightning_prune.errors import ExportError
from lightning_prune.export.network import resized, runner, tensors_of
from lightning_prune.export.runtimes import OnnxRuntime, need
from lightning_prune.support.faults import explain
from lightning_prune.support.modes import Arguments, without_hooks

METADATA_KEY = "lightning_prune"
TOLERANCE = 1e-3  # of the largest output; a float32 network differs by some 1e-6 of it
_BATCH = "The batch must be the first dimension of its inputs, and its forward must not make a Python number of that"


def export_onnx(network: nn.Module, example_input: Any, path: Path) -> None:
    """Writes a network that takes any batch size as an ONNX file, and checks what it computes.

    Args:
        network: in eval mode, on the CPU.
        example_input: one call; batch first.
        path: the file to write.

    Raises:
        ModuleNotFoundError: the extra "onnx" is not installed.
        ExportError: it cannot be exported, or the file computes something else.
    """
    need("onnx", "onnxscript")
    arguments = resized(example_input, 2)  # of 1, PyTorch would make a constant
    batch = Dim("batch")
    bound = inspect.signature(network.forward).bind(*arguments.args, **arguments.kwargs).arguments
    shapes = pytree.tree_map(lambda v: {0: batch} if isinstance(v, Tensor) and v.ndim else None, dict(bound))
    names = ["input"] if len(tensors_of(arguments)) == 1 else None
    try:
        with _quiet(), without_hooks(network), torch.no_grad():
            program = torch.onnx.export(
                network, arguments.args, kwargs=arguments.kwargs, dynamo=True, verbose=False, dynamic_shapes=shapes,
                input_names=names,
            )  # fmt: skip
            assert program is not None
            program.save(str(path), external_data=False)
    except Exception as error:  # whatever the exporter's passes raise
        raise ExportError(
            f"{type(network).__name__} cannot be exported to ONNX with a free batch size ({explain(error)}). {_BATCH}"
        ) from error
    check_same(network, example_input, path)


def check_same(network: nn.Module, example_input: Any, path: Path, batches: Sequence[int] = (1, 2, 5)) -> None:
    """Raises ExportError where an ONNX file does not compute, at some batch size, what the network computes."""
    session, run = OnnxRuntime().load(path, "fp32", threads=1), runner(network)
    for batch in batches:
        arguments = resized(example_input, batch)
        expected = outputs_of(run(arguments))
        try:
            found = session(as_arrays(arguments))
        except Exception as error:  # its own kinds, which are no RuntimeError
            raise ExportError(
                f"onnxruntime cannot run {path.name} at batch {batch} ({explain(error)}): the batch size is fixed "
                f"somewhere in {type(network).__name__}. {_BATCH}"
            ) from error
        if len(found) != len(expected):
            raise ExportError(f"{path.name} gives {len(found)} outputs, {type(network).__name__} {len(expected)}")
        for i, (ours, theirs) in enumerate(zip(expected, map(torch.from_numpy, found), strict=True)):
            gap = float((ours - theirs).abs().max()) if ours.shape == theirs.shape and ours.numel() else 0.0
            if ours.shape != theirs.shape or not gap <= TOLERANCE * max(1e-6, float(ours.abs().max())):
                raise ExportError(
                    f"output {i} of {path.name} is not what {type(network).__name__} computes at batch {batch}: "
                    f"{tuple(theirs.shape)} against {tuple(ours.shape)}, {gap:.2e} apart. Is the network random, or "
                    "does it depend on the batch size?"
                )


def outputs_of(output: Any) -> list[Tensor]:
    """The tensors of an output, in the order in which an exported network gives them."""
    return [v.float() for v in pytree.tree_leaves(output) if isinstance(v, Tensor)]


def as_arrays(arguments: Arguments) -> list[Any]:
    """The tensors among arguments of `inputs_of` or `resized` as numpy arrays."""
    return [tensor.numpy() for tensor in tensors_of(arguments)]


def write_onnx(source: Path, path: Path, info: Mapping[str, Any]) -> None:
    """Copies an ONNX file with JSON in its metadata; the name never stands for half a file."""
    import onnx

    model = onnx.load(source)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(info, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's reports: what matters is in the error, or is checked."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
