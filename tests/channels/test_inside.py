"""A network inside a model that cannot be traced: named in the message, pruned alone, proved in the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelGraph, PlanError, PruningPlan, SurgeryError, TraceError, prune_channels
from lightning_prune.scores.taylor import Taylor
from tests.channels.models import Chain, conv_bn, randomise, unchanged

IMAGES = [torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(2)]


class Detector(nn.Module):
    """Takes a list of images and gives as many boxes as it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 6)), nn.Linear(6, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        boxes = self.head(self.backbone(torch.stack(images)).mean((2, 3)))
        return [{"boxes": b[b > b.mean()] if b.sum() > 0 else b[:0]} for b in boxes]


class Peeking(Detector):
    """Reads what is inside its backbone, too."""

    def forward(self, images: list[Tensor]) -> Any:
        return super().forward(images), self.backbone[1][0](self.backbone[0](images[0][None])) * torch.ones(12, 1, 1)


def scores(model: nn.Module) -> dict[str, Tensor]:
    return {f"backbone.{i}.1": torch.rand(n, generator=torch.Generator().manual_seed(i)) for i, n in ((0, 8), (1, 12))}


def test_the_message_names_a_part_and_is_all_that_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError, match=r"Detector cannot be traced.*network='backbone' \(98% of the") as caught:
        ChannelGraph.trace(randomise(Detector()), (IMAGES,))
    assert len(str(caught.value)) < 1200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["auto", "graph"])
def test_it_is_pruned_inside_the_whole(form: str) -> None:
    torch.manual_seed(0)
    model = randomise(Detector())
    dense, hooked = copy.deepcopy(model), []
    model.backbone.register_forward_hook(lambda *a: hooked.append(a))
    result = prune_channels(model, IMAGES, scores=scores(model), macs=0.5, network="backbone", form=form)
    assert result.model is model
    assert not hooked
    assert 0.4 < result.macs[1] / result.macs[0] <= 0.5
    assert model.backbone[0][0].weight.shape[0] < 8
    fresh = PruningPlan.from_json(result.plan.to_json()).apply(copy.deepcopy(dense))
    fresh.load_state_dict(model.state_dict())
    for mine, theirs in zip(model(IMAGES), fresh(IMAGES), strict=True):
        torch.testing.assert_close(mine["boxes"], theirs["boxes"])


def test_a_whole_that_reads_inside_is_refused() -> None:
    torch.manual_seed(0)
    model = randomise(Peeking())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="Peeking around 'backbone' does not run the compact network"):
        prune_channels(model, IMAGES, scores=scores(model), macs=0.5, network="backbone")
    assert unchanged(model, before)


class Blind(Detector):
    """Finds no box."""

    def forward(self, images: list[Tensor]) -> Any:
        return [{"boxes": found["boxes"][:0]} for found in super().forward(images)]


def test_a_whole_that_gives_nothing_is_said_to_prove_nothing() -> None:
    torch.manual_seed(0)
    result = prune_channels(randomise(Blind()), IMAGES, scores=scores(Blind()), macs=0.5, network="backbone")
    assert result.proof is not None
    assert result.proof.effect > 0.1
    assert [note for note in result.notes if "Blind around 'backbone' runs, and gives the same" in note]
    result = prune_channels(randomise(Detector(), 1), IMAGES, scores=scores(Detector()), macs=0.5, network="backbone")
    assert not [note for note in result.notes if "around 'backbone'" in note]


def test_a_score_of_a_part_is_measured_on_batches_of_the_whole() -> None:
    torch.manual_seed(0)
    model = randomise(Detector())
    given: list[Any] = []

    def loss(boxes: Any, labels: Tensor | None) -> Tensor:
        given.append(boxes)
        return torch.cat([box["boxes"] for box in boxes]).square().sum()

    score, batches = Taylor(loss=loss), [(IMAGES, None)]
    result = prune_channels(model, (IMAGES,), score=score, batches=batches, macs=0.5, network="backbone")
    assert len(given) == 1
    assert 0.4 < result.macs[1] / result.macs[0] <= 0.5


@pytest.mark.parametrize(("network", "message"), [("spine", "it has backbone, head"), ("unused", "is not called")])
def test_a_part_that_is_not_there(network: str, message: str) -> None:
    model = randomise(Detector())
    model.unused = nn.Linear(2, 2)
    with pytest.raises(PlanError, match=message if network == "unused" else "network='spine' is not a module"):
        prune_channels(model, IMAGES, scores=scores(model), macs=0.5, network=network)


class Choosing(nn.Module):
    """How much comes out depends on the data, which a graph can say."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Chain(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.last(y[y.sum(1) > 0])


def test_sizes_that_depend_on_data_are_traced() -> None:
    torch.manual_seed(0)
    model = randomise(Choosing())
    assert prune_channels(model, torch.stack(IMAGES), keep={"inner.features.1": range(5)}).proof.equal


class Keywords(nn.Module):
    """Takes a tensor and, by keyword, another one; or all that in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Chain()

    def forward(self, x: Any, *, shift: Any = None) -> Tensor:
        x, shift = (x["x"], x["shift"]) if isinstance(x, dict) else (x, shift)
        return self.inner(x + shift["by"])


@pytest.mark.parametrize(
    ("kind", "form"),
    [("positional and keyword", "eager"), ("all keywords", "eager"), ("a dict itself", "eager"),
     ("positional and keyword", "graph")],
)  # fmt: skip
def test_inputs_of_all_kinds(kind: str, form: str) -> None:
    torch.manual_seed(0)
    model, x, shift = randomise(Keywords()), torch.randn(2, 3, 12, 12), {"by": torch.ones(2, 1, 1, 1)}
    example: Any = {"positional and keyword": x, "all keywords": {"x": x, "shift": shift}}.get(kind)
    example = ({"x": x, "shift": shift},) if example is None else example
    extra = {"shift": shift} if kind == "positional and keyword" else None
    keep = {"inner.features.1": range(5)}
    result = prune_channels(model, example, keep=keep, form=form, example_kwargs=extra)
    assert result.proof.equal
    assert model.inner.features[0].weight.shape[0] == 5
    assert (model({"x": x, "shift": shift}) if kind == "a dict itself" else model(x=x, shift=shift) if extra is None
            else model(x, shift=shift)).shape == (2, 5)  # fmt: skip


@pytest.mark.parametrize(
    ("example", "hint"),
    [({"image": IMAGES[0]}, r"wrap it in a tuple: example_input=\(\{...\},\)"), (IMAGES, "A list is one argument"),
     ((IMAGES[0], IMAGES[1]), "keyword ones go into example_kwargs")],
)  # fmt: skip
def test_an_input_that_was_meant_in_another_way(example: Any, hint: str) -> None:
    with pytest.raises(TraceError, match=hint):
        ChannelGraph.trace(randomise(Chain()), example)


class Watching(nn.Module):
    """Collects a feature through a hook of its own, as feature extractors do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.found = Chain(), {}
        self.inner.features.register_forward_hook(lambda m, a, out: self.found.update(map=out))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), self.found["map"].mean((2, 3))


def test_hooks_of_the_user_are_off_and_those_of_the_network_on() -> None:
    torch.manual_seed(0)
    model, seen = randomise(Watching()), []
    handles = [module.register_forward_hook(lambda *a: seen.append(a)) for module in model.modules()]
    handles += [module.register_forward_pre_hook(lambda *a: seen.append(a)) for module in model.modules()]
    x = torch.randn(2, 3, 12, 12)
    prune_channels(model, x, keep={"inner.features.1": range(5)})
    assert not seen
    assert model(x)[1].shape == (2, 6)
    assert len(seen) == len(handles)
    for handle in handles:
        handle.remove()
    model(x)
    assert len(seen) == len(handles)


class Sampling(nn.Module):
    """Adds noise in eval mode too, in a shape of its own or in that of what it is added to."""

    def __init__(self, like: bool) -> None:
        super().__init__()
        self.stem, self.mean, self.head, self.like = conv_bn(3, 8), conv_bn(8, 6), nn.Linear(6, 5), like

    def forward(self, x: Tensor) -> Tensor:
        y = self.mean(self.stem(x))
        return self.head((y + (torch.randn_like(y) if self.like else torch.randn(6, 1, 1))).mean((2, 3)))


def test_both_runs_get_the_same_random_numbers() -> None:
    torch.manual_seed(0)
    model = randomise(Sampling(like=False))
    result = prune_channels(model, torch.randn(2, 3, 12, 12), keep={"stem.1": range(5)})
    assert result.proof.equal


def test_a_random_network_is_called_random() -> None:
    torch.manual_seed(0)
    model = randomise(Sampling(like=True))
    with pytest.raises(SurgeryError, match="Sampling is random: two runs in eval mode differ"):
        prune_channels(model, torch.randn(2, 3, 12, 12), keep={"mean.1": range(4)})


def test_a_network_that_gives_its_features_says_why_it_keeps_them() -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model("test_resnet", features_only=True))
    channels = {n: torch.rand(m.num_features) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    result = prune_channels(model, torch.randn(1, 3, 32, 32), scores=channels, ratio=0.2)
    said = [note for note in result.notes if "feature maps that the network gives" in note]
    assert len(said) == 1
