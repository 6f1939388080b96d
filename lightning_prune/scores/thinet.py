"""ThiNet: channels that the next layer misses least (Luo, Wu, Lin, ICCV 2017, arXiv 1707.06342)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.scoring.base import register
from lightning_prune.scoring.reading import ReadingScore


def greedy_errors(gram: Tensor) -> Tensor:
    """The squared error of a sum when a part is gone together with all that go before it, greedily.

    The next part to go is the one that leaves the least error (the paper's algorithm 1).

    Args:
        gram: mean products of the parts, float64 [parts, parts].

    Returns:
        [parts]; it does not fall from a part to the next.
    """
    alone, with_gone = gram.diagonal(), torch.zeros_like(gram[0])
    left = torch.ones(len(gram), dtype=torch.bool)
    out, error, most = torch.zeros_like(alone), torch.zeros_like(alone[:1]), torch.zeros_like(alone[:1])
    for _ in range(len(gram)):
        change = torch.where(left, alone + 2 * with_gone, torch.inf)
        part = change.argmin()
        error = error + change[part]
        most = torch.maximum(most, error)
        out[part], left[part] = most, False
        with_gone = with_gone + gram[part]
    return out


@register("thinet")
class ThiNet(ReadingScore):
    """Greedy reconstruction of the layers that read the channels, see `greedy_errors`.

    The paper takes the same share of each layer (``scope="layer"``); one order over all layers, by the error as a share
    of the sum, is our reading. Its rescaling by least squares afterwards is ``reconstruct="scale"``.

    Args:
        places: outputs of each layer that are looked at in each batch, drawn at random; the paper takes 10 an image.
    """

    def of_sums(self, gram: Tensor) -> Tensor:
        return greedy_errors(gram)
