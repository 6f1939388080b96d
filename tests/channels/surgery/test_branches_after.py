"""Everything downstream of a removed branch: files, copies, optimizers, exports, a second pruning."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune import Sparsity, load_pruned, save_pruned, sparsity_report
from lightning_prune.channels import ChannelGraph, PruningPlan, SurgeryError
from lightning_prune.channels import recalibrate as fresh_statistics
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.surgery.empty import branch_names
from lightning_prune.masks import find_targets
from lightning_prune.plan.record import plan_of
from tests.channels.branching import EXAMPLE, LARGER, backbone, kill, prune_whole, residual, same, train
from tests.channels.models import random_scores


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "layer2.0.bn1"), ("mixnet_s", "blocks.2.1.bn3")])
def test_plans_files_and_copies_hold_no_branch_either(name: str, norm: str, tmp_path: Path) -> None:
    dense = kill(backbone(name), norm)
    model = copy.deepcopy(dense)
    plan = prune_whole(model, LARGER).plan
    fresh = PruningPlan.from_json(plan.to_json()).apply(copy.deepcopy(dense))
    save_pruned(model, tmp_path / "x.safetensors")
    loaded = load_pruned(tmp_path / "x.safetensors").eval()
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for other in (fresh, loaded, copied):
        assert same(other, model)
        assert plan_of(other) == plan
        assert {n for n, p in other.named_parameters() if p.requires_grad} == {
            n for n, p in model.named_parameters() if p.numel()
        }
        assert torch.equal(other(LARGER), model(LARGER))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_optimizer_state_and_averaged_copies_follow(kind: str) -> None:
    model = residual("blocks.0.0.1")
    make: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 1e-3, foreach=True),
    }
    optimizer = make[kind](model.parameters())
    train(model, optimizer, EXAMPLE)
    kill(model, "blocks.0.0.1")
    average = AveragedModel(model)
    prune_whole(model.eval(), EXAMPLE, optimizers=[optimizer], averaged=[average])
    for p, state in optimizer.state.items():
        assert all(v.shape == p.shape for v in state.values() if v.ndim)
    train(model, optimizer, EXAMPLE)
    average.update_parameters(model)
    assert branch_names(plan_of(average)) == ("blocks.0", "blocks.0.0")[:1]
    assert average(EXAMPLE).isfinite().all()
    state = copy.deepcopy(optimizer.state_dict())  # resumed
    again = make[kind](copy.deepcopy(model).parameters())
    again.load_state_dict(state)
    again.step()
    assert fresh_statistics(model, [EXAMPLE]) == 1


def test_what_needs_no_gradient_needs_none_after() -> None:
    model = residual("blocks.0.0.1")
    frozen = model.blocks[0][0][0].weight.requires_grad_(False)
    result = prune_whole(model, EXAMPLE)
    assert not any(p.requires_grad for p in model.parameters() if not p.numel())
    result.plan.undo(model)
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]


def test_pruned_again_and_back() -> None:
    dense = residual("blocks.0.0.1")
    model = copy.deepcopy(dense)
    first = prune_whole(model, EXAMPLE).plan
    graph = ChannelGraph.trace(model, EXAMPLE)
    assert "blocks.0.0.1.weight" not in graph.axes
    assert ScaleFactors.of(model, graph).frozen["blocks.0.0.1"] == "none of its channels is left"
    scores = {n: s for n, s in random_scores(model).items() if len(s)}
    second = prune_whole(model, EXAMPLE, scores, ratio=0.3).plan
    assert model.blocks[0][2].weight.shape[0] == model.stem[0].out_channels < 8  # the stream is not frozen
    third = prune_whole(model, EXAMPLE, keep={"blocks.1.0.1": []}).plan
    both = plan_of(model)
    assert both == first.then(second).then(third)
    assert branch_names(both) == ("blocks.0", "blocks.1")
    assert torch.equal(PruningPlan.from_json(both.to_json()).apply(copy.deepcopy(dense))(EXAMPLE), model(EXAMPLE))
    assert both.below("blocks").empty == tuple(path.removeprefix("blocks.") for path in both.empty)
    with pytest.raises(SurgeryError, match="No rewritten graph runs a model whose branches were removed"):
        prune_whole(model, EXAMPLE, keep={"stem.1": [0, 1]}, form="graph")
    both.undo(model).load_state_dict(dense.state_dict())
    assert torch.equal(model(EXAMPLE), dense(EXAMPLE))


def test_a_tensor_left_whole_in_a_rewritten_graph_keeps_its_floor() -> None:
    model = residual()
    prune_whole(model, EXAMPLE, random_scores(model), ratio=0.3, form="graph")
    kill(model, "blocks.0.0.1")
    result = prune_whole(model, EXAMPLE)
    assert result.plan.empty == ()
    assert model.blocks[0][0][0].weight.shape[0] == 1


def test_reports_and_weight_targets() -> None:
    model = residual("blocks.0.0.1")
    prune_whole(model, EXAMPLE)
    report = sparsity_report(model)
    assert report.removed == 6 * 8 * 9 * 2
    assert {row.name: row.sparsity for row in report.layers}["blocks.0.2.weight"] == 0.0
    assert "8x0x3x3" in str(report)
    metric = Sparsity()
    metric.update(model)
    assert metric.compute() == 0.0
    targets, skipped = find_targets(model)
    assert all(t.numel for t in targets)
    assert {s.name for s in skipped} == {"blocks.0.0.0.weight", "blocks.0.2.weight"}
    assert all("branch was removed" in s.reason for s in skipped)


def test_export_and_compile() -> None:
    model = kill(backbone("resnet18"), "layer1.0.bn1", "layer2.0.bn1")
    prune_whole(model, LARGER)
    expected = model(LARGER).detach()
    file = io.BytesIO()
    torch.onnx.export(model, (LARGER,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: LARGER.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # the same trace for any backend
    torch.testing.assert_close(compiled(LARGER), expected, rtol=1e-4, atol=1e-5)


def test_data_parallel_waits_for_no_gradient_of_what_is_gone() -> None:
    model = residual("blocks.0.0.1")
    prune_whole(model, EXAMPLE)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        train(parallel, torch.optim.SGD(model.parameters(), 1e-3), EXAMPLE)
        model.blocks[0][0][0].weight.requires_grad_(True)  # it would fail if one were waited for
        parallel = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(RuntimeError, match="finished reduction"):
            train(parallel, torch.optim.SGD(model.parameters(), 1e-3), EXAMPLE)
    finally:
        torch.distributed.destroy_process_group()
