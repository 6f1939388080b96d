"""The command line ``lightning-prune``."""

from lightning_prune.cli.app import main

__all__ = ["main"]
