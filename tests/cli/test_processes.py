"""What the command line does where a fit has several processes."""

from __future__ import annotations

from lightning_prune.cli.commands.fit import FitCLI


class SecondProcess:
    """A trainer of rank 1, that notes who asks for its folder: with DDP, asking waits for all processes."""

    is_global_zero = False
    default_root_dir = "."
    asked = 0

    @property
    def log_dir(self) -> str:
        self.asked += 1
        return "."


def test_every_process_asks_for_the_folder_and_the_first_one_writes() -> None:
    cli = FitCLI.__new__(FitCLI)
    cli.trainer = SecondProcess()
    cli._report()  # writes nothing, and needs no model
    assert cli.trainer.asked == 1
