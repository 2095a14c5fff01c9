"""Words of the command line for a run of seconds, and its answer to a mistake."""

from __future__ import annotations

import pytest

from lightning_lrnn.cli import main

OPTIONS = (
    "--data.batch_size=2",
    "--data.window=16",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.limit_test_batches=1",
    "--trainer.logger=false",
    "--trainer.max_epochs=1",
)

TINY = ("--model.hidden_size=8", "--model.num_layers=1")


def error_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Runs a command that is a user's mistake; returns its one line on stderr. The status is 2."""
    assert main(list(words)) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("lightning-lrnn: ")
    assert error.count("\n") == 1
    return error
