"""`deploy`: export, quantize, measure, choose, write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_prune.export.result import Deployed


def deploy(
    model: nn.Module | str | Path,
    example_input: Any,
    out: str | Path,
    *,
    calibration: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    max_drop: float = 0.01,
    baseline: nn.Module | str | Path | None = None,
    batch: int = 1,
    threads: int = 1,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    metric: Callable[[Tensor, Any], float] | None = None,
    rounds: int = 30,
) -> Deployed:
    """Writes the fastest form of a network that loses no more than a stated accuracy, as one ONNX file.

    Args:
        model: the network, a LightningModule that holds it (found as `save_pruned` finds it), or a file that
            `load_pruned` reads.
        example_input: the one argument, a tuple of positional ones, or a dict of keyword arguments; batch first. The
            file takes any batch size.
        out: the ONNX file to write.
        calibration: batches as a loader gives them, (input, labels) or inputs alone; int8 needs them. A loader may be
            read more than once.
        validation: (input, labels) batches on which accuracy is measured. Without them int8 is only written if
            ``precisions`` asks for it, as nobody knows then what it loses.
        max_drop: what the written form may lose of the network's own accuracy, as an absolute share.
        baseline: the dense network to compare with; by default the one that the network's pruning plan leads back to.
        batch: samples in a call that is timed.
        threads: threads of the runtime, and of PyTorch while it is timed.
        runtimes: out of "onnxruntime" and "openvino"; None takes those that are installed.
        precisions: out of "fp32" and "int8"; None: fp32, and int8 where there is calibration and validation data.
        metric: (output, labels) of a batch -> mean over its samples, the higher the better; None: top-1 accuracy.
        rounds: timed calls of each form, in turn.

    Raises:
        ModuleNotFoundError: an extra is not installed; the message names it.
        ExportError: the network cannot be exported, or the ONNX file does not compute the same.
        ValueError: an argument is not one of the above.
    """
    raise NotImplementedError
