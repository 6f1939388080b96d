"""Where a teacher comes from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import DistillationCallback, TimmClassifier, save_pruned
from lightning_prune.callbacks.distillation.teacher import write_copy
from tests.callbacks.methods import equal, keep_all
from tests.toy import Toy, loaders, network, trainer


def classifier() -> TimmClassifier:
    return TimmClassifier("resnet20_cifar", num_classes=4, in_chans=1, model_kwargs={"width": 4})


def taught(path: Path, module: Any, callback: DistillationCallback, **options: Any) -> DistillationCallback:
    run = trainer(path, [callback], max_epochs=1, limit_train_batches=2, limit_val_batches=0, **options)
    run.fit(module, **loaders())
    return callback


def test_a_teacher_by_name_or_by_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    right = TimmClassifier("resnet20_cifar", num_classes=4, in_chans=1, model_kwargs={"width": 8}).model
    torch.save(right.state_dict(), tmp_path / "right.pth")
    save_pruned(right, tmp_path / "right.safetensors")
    by_name = DistillationCallback(
        "resnet20_cifar", checkpoint=str(tmp_path / "right.pth"), teacher_kwargs={"width": 8}, features=["layer2"]
    )
    for callback in (by_name, DistillationCallback(tmp_path / "right.safetensors")):
        assert equal(taught(tmp_path, classifier(), callback).teacher, right)  # type: ignore[arg-type]


def test_a_teacher_that_cannot_teach_is_refused(tmp_path: Path) -> None:
    def fails(callback: DistillationCallback, match: str, module: Any = None) -> None:
        with pytest.raises(ValueError, match=match):
            taught(tmp_path, Toy() if module is None else module, callback)

    fails(DistillationCallback("resnet20_cifar"), "would start at random, which teaches nothing")
    fails(DistillationCallback("no_such_net"), "neither a file nor a timm model")
    wide = nn.Sequential(*network()[:8], nn.Linear(16, 5))
    fails(DistillationCallback(wide), r"\(8, 4\) and the teacher's \(8, 5\).*same classes")
    fails(DistillationCallback(features=["33"]), "Sequential has no layer '33'. Did you mean 3")
    fails(DistillationCallback(network(), features={"2": "nowhere"}), "has no layer 'nowhere'")
    fails(DistillationCallback(features=["7"]), r"\(8, 16\) have no positions")

    class Parts(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net[8](self.net[:8](x))

    fails(DistillationCallback(), "training_step did not call Sequential", Parts())

    class Boxes(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(batch[0])["boxes"].sum()

    boxes = Boxes()
    boxes.net.forward = lambda x: {"boxes": nn.Sequential.forward(boxes.net, x)}  # type: ignore[method-assign]
    fails(DistillationCallback(network()), r"no logits are known in an output of dict: override logits_of", boxes)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"alpha": 1.5}, r"alpha=1.5 is the share .* in \[0, 1\]"),
        ({"alpha": 0.0}, "distils nothing"),
        ({"matching": "hint"}, "matching='hint' must be"),
        ({"features": "layer1"}, r"must be a list of paths, such as \['layer1'\]"),
        ({"features": ["a"], "beta": -1.0}, "beta=-1.0 must not be negative"),
        ({"pretrained": True}, "of a teacher by its timm name"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DistillationCallback(**options)
    with pytest.raises(TypeError, match=r"no option 'temprature'. Did you mean temperature"):
        DistillationCallback(temprature=2.0)  # type: ignore[call-arg]


def test_a_resumed_run_looks_for_its_teacher(tmp_path: Path) -> None:
    def run(callback: DistillationCallback, ckpt_path: Any = None, keep: Any = ()) -> None:
        made = trainer(tmp_path / "run", [callback, *keep], max_epochs=1, enable_checkpointing=True)
        made.fit(Toy(), **loaders(), ckpt_path=ckpt_path)

    run(DistillationCallback(), keep=[keep_all(tmp_path, 3)])
    path = tmp_path / "step=3.ckpt"
    run(DistillationCallback(), path)
    [file] = (tmp_path / "run").glob("teacher-*.safetensors")
    moved = tmp_path / "elsewhere" / file.name
    moved.parent.mkdir()
    file.rename(moved)
    with pytest.raises(FileNotFoundError, match="Give teacher_dir= the folder that it is in now"):
        run(DistillationCallback(), path)
    run(DistillationCallback(teacher_dir=str(moved.parent)), path)
    assert not file.exists()  # where it is now is known from here on
    with pytest.warns(UserWarning, match="The teacher is not the one that the checkpoint's run had"):
        run(DistillationCallback(network(3)), path)
    run(DistillationCallback(network(3)), keep=[keep_all(tmp_path / "given", 3)])
    with pytest.raises(ValueError, match="was given its teacher: give teacher= again"):
        run(DistillationCallback(), tmp_path / "given" / "step=3.ckpt")
    other = DistillationCallback(teacher_dir=str(moved.parent))
    moved.unlink()
    write_copy(network(5), moved)
    with pytest.raises(ValueError, match="does not hold the teacher of this checkpoint's run"):
        run(other, path)
