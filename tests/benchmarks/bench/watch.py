"""What a removal of channels costs before any finetune step."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from lightning_prune import ChannelPruning


class Watch(lightning.Callback):
    """Test accuracy right after the removal, before any finetune step; stands behind the callback that removes.

    Attributes:
        accuracy: share of right answers; NaN until channels have gone.
    """

    def __init__(self, callback: ChannelPruning, data: Any) -> None:
        self.callback, self.data, self.accuracy = callback, data, float("nan")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.callback.stage == "pruned" and self.accuracy != self.accuracy:
            right = total = 0
            pl_module.eval()
            with torch.no_grad():
                for images, labels in self.data.test_dataloader():
                    right += int((pl_module(images).argmax(1) == labels).sum())
                    total += len(labels)
            pl_module.train()
            self.accuracy = right / total
