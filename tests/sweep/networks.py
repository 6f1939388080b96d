"""What the sweep over timm runs on: which architectures, in what order, at what size, with what numbers in them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

LIST = Path(__file__).with_name("timm.csv")
VERSION = f"# timm {timm.__version__}"
SIZES = (96, 128, 160, 192, 224, 256, 288, 320, 384)
LARGE = 320
ROUNDING = 1e-6
"""So small is a gradient that is only rounding, next to the largest one of a network."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with scale factors."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine


def listing() -> list[dict[str, Any]]:
    """[{name, parameters, norms}] of all architectures of timm, smallest first.

    norms: affine BatchNorms, 0 where all of them are one-dimensional. Of another timm than the one that `LIST` is of,
    they are counted anew and written there, which takes minutes.
    """
    with LIST.open() as file:
        if file.readline().strip() == VERSION:
            return [{**row, **{k: int(row[k]) for k in ("parameters", "norms")}} for row in csv.DictReader(file)]
    rows: list[dict[str, Any]] = []
    for name in timm.list_models(exclude_filters="character_*"):
        with torch.device("meta"):
            model = timm.create_model(name)
        norms = [m for m in model.modules() if is_norm(m)]
        parameters = sum(p.numel() for p in model.parameters())
        flat = all(isinstance(m, nn.BatchNorm1d) for m in norms)
        rows.append({"name": name, "parameters": parameters, "norms": 0 if flat else len(norms)})
    rows.sort(key=lambda r: (r["parameters"], r["name"]))
    with LIST.open("w") as file:
        file.write(VERSION + "\n")
        writer = csv.DictWriter(file, ["name", "parameters", "norms"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


SHORT: tuple[dict[str, Any], ...] = ({"depth": 2}, {"depths": (2, 2, 2, 2)})
"""Arguments of architectures for two blocks a stage."""


def build(name: str, short: bool = False) -> tuple[nn.Module, Tensor]:
    """A randomised model and a batch that it runs on, at the smallest size that it allows.

    Where the size is fixed, a model is made for a smaller one (``img_size``) if its code takes that.
    ``short`` gives it two blocks a stage.
    """
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    native = config.input_size
    assert native is not None
    failed: Exception | None = None
    for size in [*(s for s in SIZES if s < native[-1]), native[-1]]:
        batch = torch.randn(2 if size <= LARGE else 1, native[0], size, size)  # for want of memory
        smaller = {"img_size": size} if config.fixed_input_size and size != native[-1] else {}
        for blocks in SHORT if short else ({},):
            try:
                torch.manual_seed(0)
                model = timm.create_model(name, **smaller, **blocks)
                randomise(model, batch)
                return model, batch
            except Exception as error:
                failed = error
    raise RuntimeError(f"the dense model itself does not run at up to {native[-1]} px: {failed}") from failed


def randomise(model: nn.Module, batch: Any, norms_alone: bool = False) -> None:
    """Random scale factors and shifts, statistics of one batch: every channel matters.

    So do the layers behind what begins as a constant, such as a layer scale of 1e-6 or a last layer of zeros: these
    become random too, around one or around zero.

    norms_alone: they are in train mode meanwhile, and nothing else, where the model wants targets in train mode; and
    no constant changes.
    """
    generator, other = (torch.Generator().manual_seed(0) for _ in range(2))
    norms = [m for m in model.modules() if is_norm(m)]
    own = {id(p) for norm in norms for p in norm.parameters()}
    for parameter in model.parameters() if not norms_alone else ():
        first = parameter.data.flatten()[:1]
        if id(parameter) not in own and len(first) and bool((parameter.data == first).all()):
            drawn = torch.rand(parameter.shape, generator=other)
            parameter.data = 0.4 * (drawn - 0.5) if first == 0 else drawn + 0.5
    for norm in norms:
        norm.weight.data = torch.rand(norm.weight.shape, generator=generator) + 0.5
        norm.bias.data = 0.2 * torch.randn(norm.bias.shape, generator=generator)
        norm.momentum = 1.0
    with torch.no_grad():
        for module in model.modules():
            module.training = is_norm(module) or not norms_alone
        model(batch)
    for norm in norms:
        norm.momentum = 0.1
        norm.running_var.clamp_(min=1e-3)
    for module in model.modules():
        module.training = False


def train_step(model: nn.Module, batch: torch.Tensor) -> int:
    """One step of SGD in train mode; returns how many parameters got no gradient or did not move."""
    return len(untrained(model, batch))


def untrained(model: nn.Module, batch: torch.Tensor, rounding: float = 0.0) -> set[str]:
    """The parameters that get no gradient in one step of SGD in train mode, or do not move.

    rounding: a gradient is none if it is at most so large, next to the largest one of the network. That of a bias that
    a softmax or a norm cancels is zero but for rounding.
    """
    for module in model.modules():
        module.training = True
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    out = model(batch)
    leaves = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    generator = torch.Generator().manual_seed(2)
    sum((t * torch.randn(t.shape, generator=generator)).sum() for t in leaves).backward()
    sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in model.named_parameters()}
    least, found = rounding * max(sizes.values()), set()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.grad is not None and sizes[name] > least:
                p -= p.grad / max(sizes[name], 1e-20)
            if torch.equal(before[name], p):
                found.add(name)
    return found
