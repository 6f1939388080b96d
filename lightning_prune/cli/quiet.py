"""Messages that tell the user of this command nothing: left out while it runs, and only then.

Advertisements, deprecations between the libraries that we stand on, and advice that does not hold for data that lies in
memory. A program that uses the package sees all of them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGED = ("Tip:", "TPU available:", "HPU available:", "was configured so", "Seed set to", "`weights_only` was not set")
_WARNED = (
    r".*isinstance\(treespec, LeafSpec\)",
    r".*does not have many workers",
    r".*smaller than the logging interval",
    r".*tensorboardX.*has been removed as a dependency",
    r".*Checkpoint directory .* exists and is not empty",
)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(part in text for part in _LOGGED)


@contextmanager
def quiet(*more: str) -> Iterator[None]:
    """Leaves those messages out within the ``with`` block, and warnings that begin as one of ``more`` says."""
    loggers = [logging.getLogger(f"{name}.utilities.rank_zero") for name in ("lightning.pytorch", "lightning.fabric")]
    loggers.append(logging.getLogger("lightning.fabric.utilities.seed"))
    unheard = _Filter()
    for logger in loggers:
        logger.addFilter(unheard)
    try:
        with warnings.catch_warnings():
            for pattern in (*_WARNED, *more):
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(unheard)
