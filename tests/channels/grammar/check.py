"""What must hold of any network and any plan: raises AssertionError for what does not, and says what came of a case."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune import load_pruned, plan_of, save_pruned
from lightning_prune.channels import ChannelError, Pruned, PruningPlan, SurgeryError, TraceError
from lightning_prune.plan.cut import Cut
from lightning_prune.support.macs import count_macs
from lightning_prune.support.modes import drops, mode
from lightning_prune.support.tensors import state_tensors, take
from tests.channels.grammar import plans
from tests.channels.grammar.networks import Description, build, example
from tests.channels.models import silenced, unchanged

EXACT: dict[str, float] = {"rtol": 1e-8, "atol": 1e-9}
MISS = 0.01
FOUND_WRONG = ("does not compute what", "computes something else", "differs first", "does not run")
"""What a refusal says where the library finds its own mistake: right of it to refuse, and a bug all the same."""


class Case(NamedTuple):
    """A network and what is asked of it."""

    network: Description
    plan: dict[str, Any]


def check(case: Case, folder: Path, deep: bool = True) -> str:
    """What came of a case: "pruned", "pruned as a graph", or the reason of a refusal.

    Args:
        folder: for files.
        deep: whether to look at what traces once more too: a second plan, and a rewritten graph from a file.
    """
    dense = build(case.network)
    given = example(case.network)
    small = copy.deepcopy(dense)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    done = _pruned(small, case.network, case.plan)
    if isinstance(done, ChannelError):
        assert unchanged(small, before), f"refused, and changed: {done}"
        assert_same(small(*given), dense(*given), rtol=0, atol=0)
        return _refusal(done, case.plan)
    assert done.proof is not None
    assert done.proof.equal
    if case.plan.get("constants") != "fold":
        _computes_the_same(dense, small, done.plan, given)
    _costs(dense, small, done, given, case.plan)
    _comes_back(dense, small, done.plan, given)
    if deep or done.plan.form == "eager":
        _is_applied_anew(dense, small, done.plan, given)
        _is_stored(dense, small, given, folder)
    if deep:
        _composes(dense, small, case)
    return "pruned" if done.plan.form == "eager" else "pruned as a graph"


def _pruned(model: nn.Module, network: Description, plan: dict[str, Any]) -> Pruned | ChannelError:
    try:
        return plans.prune(model, network, plan)
    except ChannelError as error:
        return error


def _refusal(error: ChannelError, plan: dict[str, Any]) -> str:
    text = str(error)
    assert len(text) > 20, text
    assert not isinstance(error, TraceError), text
    wrong = isinstance(error, SurgeryError) and any(words in text for words in FOUND_WRONG)
    assert not wrong or plan.get("form") == "eager", text
    return f"{type(error).__name__}: {text}"


def assert_same(mine: Any, theirs: Any, **tolerance: float) -> None:
    """Asserts that two structures hold the same tensors."""
    left, right = pytree.tree_leaves(mine), pytree.tree_leaves(theirs)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def _step(model: nn.Module, given: tuple[Tensor, ...]) -> tuple[Any, dict[str, Tensor | None]]:
    """(outputs, gradients) of a step in train mode without dropout."""
    with mode(model, True, noise=False), torch.random.fork_rng():
        torch.manual_seed(0)  # PyTorch's attention drops by itself
        out = model(*given)
    generator = torch.Generator().manual_seed(9)
    leaves = [t for t in pytree.tree_leaves(out) if t.requires_grad]
    sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in leaves).backward()
    return out, {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}


def _nudged(model: nn.Module) -> nn.Module:
    """A copy in which no norm's scale is zero: behind one all pixels are equal, and a maximum takes one by rounding."""
    model = copy.deepcopy(model)
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine):
        norm.weight.data += 1e-6 * (norm.weight.data == 0)
    return model


def _other_gradient(grads: Any, expected: Any, plan: PruningPlan) -> str:
    """The first parameter whose gradient is another one in the sliced network, or an empty string."""
    for name, grad in grads.items():
        cut, wanted = plan.cuts.get(name, Cut((), {})), expected[name]
        if 0 in cut.new_shape or (grad is None and wanted is None):
            continue
        if grad is None or wanted is None or not torch.allclose(grad, take(wanted, cut.kept), rtol=1e-7, atol=1e-8):
            return str(name)
    return ""


def _computes_the_same(dense: nn.Module, small: nn.Module, plan: PruningPlan, given: tuple[Tensor, ...]) -> None:
    """Masked is sliced: outputs in both modes, gradients, and the statistics after a step.

    In a rewritten graph dropout cannot be switched off in train mode; with it, only eval mode is looked at.
    """
    masked, sliced = silenced(copy.deepcopy(dense), plan), copy.deepcopy(small)
    assert_same(sliced(*given), masked(*given), **EXACT)
    if plan.form == "graph" and any(map(drops, dense.modules())):
        return
    (mine, grads), (theirs, expected) = (_step(m, given) for m in (sliced, masked))
    assert_same(mine, theirs, **EXACT)
    if name := _other_gradient(grads, expected, plan):
        # Not so by a tie alone: with all ties broken alike they have to be the same.
        broken = _step(_nudged(small), given)[1], _step(silenced(_nudged(dense), plan), given)[1]
        assert not _other_gradient(*broken, plan), f"gradient of {name}"
    for name, buffer in sliced.named_buffers():
        wanted = take(state_tensors(masked)[name], plan.cuts[name].kept if name in plan.cuts else {})
        torch.testing.assert_close(buffer, wanted, msg=f"{name} after a step", **EXACT)


def _costs(dense: nn.Module, small: nn.Module, done: Pruned, given: tuple[Tensor, ...], plan: dict[str, Any]) -> None:
    """What is said of MACs and parameters is what PyTorch counts; a target is met, or a note says by how much not."""
    measured = [count_macs(m, given) / len(given[0]) for m in (dense, small)]
    for said, found in zip(done.macs, measured, strict=True):
        assert math.isclose(said, found, rel_tol=MISS, abs_tol=1), f"said {done.macs} MACs, measured {measured}"
    counted = tuple(sum(p.numel() for p in m.parameters()) for m in (dense, small))
    assert done.params == counted, f"said {done.params} parameters, counted {counted}"
    for name, (old, new) in (("macs", measured), ("params", counted)):
        if (share := plan.get(name)) is not None:
            miss = abs(new / max(old, 1) / share - 1)
            assert miss <= MISS or any("target of" in note for note in done.notes), (
                f"{name}={share}: {new / old:.3f} left"
            )


def _comes_back(dense: nn.Module, small: nn.Module, plan: PruningPlan, given: tuple[Tensor, ...]) -> None:
    """Undone: dense shapes, kept bits in place, zeros elsewhere, and the dense state brings all back."""
    restored = copy.deepcopy(small)
    applied = plan_of(restored)
    assert applied is not None
    assert applied.same_cut(plan)
    applied.undo(restored)
    own, wanted = restored.state_dict(), state_tensors(silenced(copy.deepcopy(dense), plan))
    for name, tensor in dense.state_dict().items():
        assert own[name].shape == tensor.shape, name
        if name in plan.cuts and not name.endswith("running_var"):
            fresh = take(state_tensors(small)[name], {})
            torch.testing.assert_close(take(own[name], plan.cuts[name].kept), fresh, rtol=0, atol=0)
            gone = wanted[name] == 0
            assert not bool(own[name][gone].any()), f"{name} is not zero where it was cut"
    assert plan_of(restored) is None
    assert _attributes(restored) == _attributes(dense)
    restored.load_state_dict(dense.state_dict())
    assert_same(restored(*given), dense(*given), rtol=0, atol=0)


def _is_applied_anew(dense: nn.Module, small: nn.Module, plan: PruningPlan, given: tuple[Tensor, ...]) -> None:
    """The plan, from text, makes the same of another dense network, bit for bit."""
    fresh = PruningPlan.from_json(plan.to_json()).apply(copy.deepcopy(dense))
    fresh.load_state_dict(small.state_dict())
    assert_same(fresh(*given), small(*given), rtol=0, atol=0)


def _attributes(model: nn.Module) -> list[tuple[str, str, dict[str, str]]]:
    """(path, class, attributes as text) of all modules, tensors and mode aside."""

    def told(module: nn.Module) -> dict[str, str]:
        own = {n: v for n, v in vars(module).items() if isinstance(v, (int, float, str, list, tuple, type(None)))}
        tensors = {n for n, v in own.items() if any(isinstance(t, Tensor) for t in pytree.tree_leaves(v))}
        return {n: repr(v) for n, v in own.items() if n not in {*tensors, "training", "_flat_weight_refs"}}

    return [(path, type(m).__name__, told(m)) for path, m in model.named_modules()]


def _is_stored(dense: nn.Module, small: nn.Module, given: tuple[Tensor, ...], folder: Path) -> None:
    """A file brings the compact network back bit for bit, and the way to the dense one with it."""
    path = save_pruned(small, folder / "network.safetensors")
    loaded = load_pruned(path, copy.deepcopy(dense)).eval()
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    assert_same(loaded(*given), small(*given), rtol=0, atol=0)
    plan = plan_of(loaded)
    assert plan is not None
    rebuilt = plan.undo(loaded)
    assert {n: t.shape for n, t in rebuilt.state_dict().items()} == {n: t.shape for n, t in dense.state_dict().items()}


def _composes(dense: nn.Module, small: nn.Module, case: Case) -> None:
    """Cut twice is the one plan that the network remembers."""
    given = example(case.network)
    again = {**{n: v for n, v in case.plan.items() if n in ("form", *plans.TRACED)}, "seed": case.plan["seed"] + 1}
    branches, form = plan_of(small).empty, plan_of(small).form  # type: ignore[union-attr]
    done = _pruned(small, case.network, {**again, "ratio": 0.3})
    if isinstance(done, ChannelError):
        _refusal(done, {"form": "eager"} if branches or form == "graph" else again)
        return
    total = plan_of(small)
    assert total is not None
    one = PruningPlan.from_json(total.to_json()).apply(copy.deepcopy(dense))
    assert {n: t.shape for n, t in one.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}
    one.load_state_dict(small.state_dict())
    assert_same(one(*given), small(*given), rtol=0, atol=0)
    if case.plan.get("constants") != "fold":
        _computes_the_same(dense, small, total, given)
    assert done.plan.cuts.keys() <= total.cuts.keys()


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A smaller case that still fails: steps go from the end, options of the plan go one by one."""
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(case):
            if fails(smaller):
                case, changed = smaller, True
                break
    return case


def _smaller(case: Case) -> list[Case]:
    steps, inputs = case.network["steps"], len(case.network["inputs"])
    width = [2 if s[0] == "parts" else 1 for s in steps]
    starts = [inputs + sum(width[:i]) for i in range(len(steps))]
    found = []
    for k in reversed(range(len(steps))):
        if any(s[0] == "again" and s[2]["step"] == k for s in steps):
            continue
        source = steps[k][1][0]  # who read what came out reads what went in

        def place(i: int, at: int = starts[k], n: int = width[k], source: int = source) -> int:
            return i if i < at else source if i < at + n else i - n

        rest = [
            [s[0], [place(i) for i in s[1]], {**s[2], "step": s[2]["step"] - (s[2]["step"] > k)}, *s[3:]]
            if s[0] == "again"
            else [s[0], [place(i) for i in s[1]], *s[2:]]
            for s in steps[:k] + steps[k + 1 :]
        ]
        raw = [place(i) for i in case.network["raw"] if not starts[k] <= i < starts[k] + width[k]]
        found.append(Case({**case.network, "steps": rest, "raw": raw}, case.plan))
    for k, one in enumerate(steps):
        if len(one) > 3:
            found.append(Case({**case.network, "steps": [*steps[:k], one[:3], *steps[k + 1 :]]}, case.plan))
    if case.network["raw"]:
        found.append(Case({**case.network, "raw": []}, case.plan))
    rare = [n for n in case.plan if n not in ("seed", "ratio", "macs", "params")]
    return found + [Case(case.network, {n: v for n, v in case.plan.items() if n != name}) for name in rare]
